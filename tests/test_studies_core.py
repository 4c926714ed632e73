"""The shared modules of studies/: training, the report's numbers, the command."""
import csv
import dataclasses
import math
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_studies
import small_training
import torch
from refusals import Bomb, contents, saved
from small_studies import same_weights

from common.errors import InputError
from studies import __main__ as command
from studies import autoencoder, report, training


def test_an_old_torch_gets_the_usual_adam(monkeypatch):
    """torch before 2.4 refuses to step in one pass on a CPU."""
    def old(parameters, fused=False, make=torch.optim.Adam, **options):
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be CUDA, floating point Tensor")
        return make(parameters, **options)

    weights = torch.nn.Parameter(torch.ones(3))
    assert training.adam(iter([weights]), lr=0.1).defaults["fused"]
    monkeypatch.setattr(torch.optim, "Adam", old)
    optimizer = training.adam(iter([weights]), lr=0.1)
    assert optimizer.param_groups[0]["params"] == [weights] and optimizer.defaults["lr"] == 0.1


def rows(model):
    """The history without its durations."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in model.history]


def test_a_killed_training_goes_on_to_the_weights_of_a_whole_one(tmp_path, environment):
    whole, folder = small_training.train(tmp_path / "whole", 40), tmp_path / "killed"
    checkpoint = folder / "checkpoints/net.ckpt"
    process = subprocess.Popen([sys.executable, small_training.__file__, str(folder), "40"], stderr=subprocess.PIPE,
                               env={**environment, "PYTHONPATH": str(small_studies.ROOT)}, text=True)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    said = process.communicate()[1]
    kept = torch.load(str(checkpoint), weights_only=True)["history"]
    assert process.returncode == -signal.SIGKILL and 1 <= len(kept) < 40, said
    assert len(kept) >= said.count("epoch") * 5 - 1  # of every fifth epoch a line is printed before it is saved
    resumed = small_training.train(folder, 40, resume=True)
    assert resumed.history[:len(kept)] == kept and rows(resumed) == rows(whole) and same_weights(resumed, whole)
    assert resumed.seconds == sum(row["seconds"] for row in resumed.history) and not resumed.training
    anew = small_training.train(folder, 2)
    assert rows(anew) == rows(whole)[:2] and anew.history[0]["seconds"] != kept[0]["seconds"]
    small_training.train(folder, 4, resume=True)
    assert [path.name for path in (folder / "logs").iterdir()] == ["net.csv"]  # one table, resumed or not
    with open(str(folder / "logs/net.csv"), newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    small_training.train(tmp_path, 2)
    checkpoint, exploded = tmp_path / "checkpoints/net.ckpt", tmp_path / "exploded"
    whole, bombed = checkpoint.read_bytes(), torch.load(str(checkpoint), weights_only=True)
    bombed["metadata"]["bomb"] = Bomb(exploded)
    every, held, few = small_training.images(99, 1), small_training.images(31, 2), small_training.images(60, 1)
    inverted = dataclasses.replace(every, pixels=255 - every.pixels)
    relabelled = dataclasses.replace(every, labels=2 - every.labels)
    others = "the images and the split that it was trained on, found others"
    unlike = (({"lr": 0.02}, "lr 0.02, found 0.01"), ({"sets": (few, held)}, "images 60, found 99"),
              ({"metadata": {"encoder_epochs": 7}}, "encoder_epochs 7, found None"), ({"seed": 6}, "seed 6, found 5"),
              ({"epochs": 1}, "at most 1 epochs, found 2"), ({"sets": (inverted, held)}, others),
              ({"sets": (relabelled, held)}, others), ({"sets": (every, few)}, others))
    damaged = whole[:-200], b"", pickle.dumps(Bomb(exploded)), saved(bombed)
    for options, content, said in (*((options, whole, f"{said}; --overwrite starts over") for options, said in unlike),
                                   *(({}, content, "a checkpoint.*") for content in damaged)):
        checkpoint.write_bytes(content)
        with pytest.raises(InputError, match=f"net.ckpt: expected {said}$") as caught:
            small_training.train(tmp_path, resume=True, **{"epochs": 2, **options})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and not exploded.exists()


def test_diverged_losses_and_flags_that_are_not_taken_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="^net: expected losses that are numbers, found .* nan.* in epoch 1; the t"):
        small_training.train(tmp_path, 3, lr=1e30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("")
    for flag, value, said in (
            ("device", "warp", "--device"), ("device", "cuda", "--device"), ("devices", 999, "--devices"),
            ("num_nodes", 2, "--num-nodes"), ("precision", "nonsense", "--precision"),
            ("folder", tmp_path / "file", "file: expected a folder")):
        with pytest.raises(InputError, match=f"{said}.*: expected .*found" if "-" in said else said):
            training.Run(**{"folder": tmp_path, "device": "cpu", "overwrite": True, flag: value}).fit(
                "net", small_training.Net(), small_training.images(20, 1), epochs=1, batch_size=9)


def test_other_results_are_refused_or_replaced_and_foreign_files_stay(tmp_path, monkeypatch):
    small_training.train(tmp_path, 1, overwrite=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["net.ckpt"]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/old.png").write_text("of another variant")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new folder, found study.json, checkpoints, logs, figures"):
        small_training.train(tmp_path, 1, overwrite=False)
    (tmp_path / "thesis/figures").mkdir(parents=True)
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="expected a new folder or one of a study, found figures of"):
            training.Run(tmp_path / "thesis", "cpu", study="small", **flags)
    with pytest.raises(InputError, match="expected results of other, found those of small; --overwrite replaces them"):
        training.Run(tmp_path, "cpu", resume=True, study="other")
    training.Run(tmp_path, "cpu", overwrite=True, study="other")
    assert (tmp_path / "figures/old.png").exists()  # nothing is deleted before the data have been read
    monkeypatch.setattr(small_training.Net, "losses", lambda *_: {}["stop"])
    with pytest.raises(KeyError):
        small_training.train(tmp_path, 40)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "notes.txt", "study.json", "thesis"}


def test_ranks_of_one_process_are_refused_and_slurm_variables_ignored(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=f"{name}=1 in the env.*; unset {name} or"):
            patch.setenv(name, "1")
            training.Run(tmp_path, "cpu")
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive", "SLURM_JOB_ID": "7", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert len(small_training.train(tmp_path, 1).history) == 1


def test_threads_are_the_idle_cores_or_as_many_as_asked(tmp_path, monkeypatch):
    for load, devices, threads in ((0.2, 1, 8), (5.6, 1, 2), (40.0, 1, 1), (0.0, 2, 4)):
        with monkeypatch.context() as patch:
            patch.setattr(training.torch, "get_num_threads", lambda: 8)
            patch.setattr(training.os, "getloadavg", lambda load=load: (load, 0, 0), raising=False)
            assert training.idle_cores(devices) == threads
    for threads in (2, 1):
        assert training.Run(tmp_path, "cpu", threads=threads).threads == torch.get_num_threads() == threads


def test_what_was_trained_in_bfloat16_is_measured_in_float32(tmp_path):
    net = training.Run(tmp_path, "cpu", precision="bf16-mixed").fit(
        "net", small_training.Net(), small_training.images(30, 1), epochs=2, batch_size=9)
    found = training.map_batches(net.body, small_training.images(5, 2).pixels, batch_size=2)
    assert found.shape == (5, 3) and found.dtype == torch.float32 and len(net.curve("train_loss")) == 2


def leaf(mean, sd, *values):
    """What metrics.summarise makes of the numbers of some seeds."""
    return {"mean": mean, "sd": sd, "values": values or [0, 0, 0]}


def test_trends_count_what_exceeds_the_noise_and_numbers_have_a_spread():
    for values, trend in (
            ((1, 2, 3), "rises"), ((3, 2.5, 1), "falls"), ((1, 1.005, 1.008), "is flat"), ((0.0, 0.0), "is flat"),
            ((1, 3, 1.5), "is not monotonic"), ((leaf(1, 1), leaf(2, 1), leaf(1.5, 1)), "is flat"),
            ((leaf(1, 0.1), leaf(2, 0.1), leaf(1.95, 0.1)), "rises"), ((leaf(9, 0.1), leaf(2, 0.1)), "falls"),
            ((0.25, leaf(0.26, 0.1)), "is flat"), ((0.25, leaf(0.5, 0.1)), "rises")):
        assert report.trend(values) == trend, values
    for value, text in ((162.0, "162.0"), (0.0472, "0.04720"), (12_345, "12,345"), (123456.0, "123,456"), (None, "–"),
                        (0.0, "0.000"), (math.nan, "NaN"), (leaf(1.5, 0.25, 1.25, 1.75), "1.500 ± 0.25"),
                        (leaf(1.5, None, 1.5), "1.500"), (leaf(62.0, None, 62), "62"), (leaf(None, None, None), "–"),
                        (leaf(None, None, None, 2.0), "–")):
        assert report.number(value) == text
    assert report.percent(0.5, [0.4, 0.6]) == "50.0 % (40.0 to 60.0)" and report.percent(0.123) == "12.3 %"
    assert report.join_numbers([leaf(0.01553, 1), 12.34]) == "0.0155, 12.3"
    claims = [report.Claim("a", "b", agrees) for agrees in (True, False, None)]
    for quick, held_out, paragraphs in ((False, 100, 0), (True, 100, 1), (False, 99, 1)):
        section = report.conclusions(claims, {"quick": quick, "data": {"held_out": held_out}})
        decided = ["undecided"] * 3 if paragraphs else ["yes", "no", "undecided"]
        assert [row[2] for row in section.tables[0].rows] == decided
        assert len(section.paragraphs) == paragraphs


def test_bad_words_and_data_are_one_line_and_help_shows_an_example(capsys, tmp_path):
    np.save(str(tmp_path / "bare.npy"), np.random.default_rng(0).integers(255, size=(11, 8, 8), dtype=np.uint8))
    for words, said in (
            *((f"{name} {tmp_path}/bare.npy --out {tmp_path} --device cpu", "at least 10 images to train on, found 8")
              for name in command.STUDIES),
            ("none", "invalid choice: 'none'"), ("autoencoder x", "--out"),
            ("autoencoder x --out y --nope", "unrecognized arguments: --nope"),
            ("autoencoder x --out y --seeds 0", "a number from 1 to 2147483647, found 0"),
            ("autoencoder x --out y --epochs x", "invalid whole number value: 'x'"),
            ("autoencoder x --out y --variant x", "bce"),
            ("autoencoder x --out y --strategy ddp_spawn", "'auto', 'ddp'"),
            ("autoencoder x --out ", "argument --out: expected a name, found nothing"),
            ("autoencoder  --out y", "argument DATA: expected a name, found nothing"),
            ("autoencoder x --out y --resume --overwrite", "not allowed with argument"),
            (f"gan {tmp_path} --out {tmp_path}/a", "expected a folder outside the data"),
            ("autoencoder none.npz --out y", "none.npz: expected")):
        assert command.main(words.split(" ")) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert command.main([]) == 2 and "autoencoder" in capsys.readouterr().err
    for words, said in ((["--help"], "autoencoder"), (["autoencoder", "--help"], autoencoder.EXAMPLE)):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 0 and said in capsys.readouterr().out


def test_two_processes_that_fail_end_with_one_line(draw, tmp_path, environment):
    source, quick = small_studies.write_drawn(draw, tmp_path), {"feature_steps": 1, "epochs": 2, "lr": 1e30}
    process = small_studies.process(quick, "autoencoder", source, tmp_path, environment, "--devices", "2")
    lines = process.communicate(timeout=600)[1].splitlines()  # when no process is left that could write more
    assert process.returncode == 2 and len(lines) == 3 and "features: epoch 2/2" in lines[1], lines
    assert lines[2].startswith("ae_described_seed0: expected losses that are numbers, found")


@pytest.mark.parametrize("name", command.STUDIES)
def test_the_fewest_images_give_a_report_and_a_resumed_study_the_same(name, draw, tmp_path, monkeypatch):
    source, quick = small_studies.write_drawn(draw, tmp_path, 14), {"measure_every": 1} if name == "gan" else {}
    whole = small_studies.studied({"feature_steps": 1, **quick}, name, source, tmp_path / "out", "--epochs", "2")
    assert (whole.results["data"]["train"], whole.results["data"]["held_out"]) == (10, 4)
    findings = whole.text.split("<h2>The run")[0]
    assert whole.results["conclusions"] and "FashionMNIST" not in findings and "240.46" not in findings
    pictures, epochs = contents(tmp_path / "out/figures"), []

    def stop(module, start=training.StudyModule.on_train_epoch_start):
        epochs.extend([module.name] * (module.name != "features"))
        if len(epochs) == (4 if name == "fashion" else 2):  # the second epoch of a network, in fashion one with frames
            raise KeyboardInterrupt
        start(module)

    with monkeypatch.context() as patch:
        patch.setattr(training.StudyModule, "on_train_epoch_start", stop)
        assert whole.study("--overwrite")[0] == 130
    assert whole.study("--resume")[0] == 0
    again = small_studies.left(tmp_path / "out")
    assert all(same_weights(model, again.models[key]) for key, model in whole.models.items())
    assert contents(tmp_path / "out/figures") == pictures
    if name == "representations":  # whose classifiers depend on the encoders
        code, said = whole.study("--resume", "--epochs", "3")
        assert code == 2 and "expected encoder_epochs 3, found 2" in said[-1], said
