"""python probe.py SCRIPT MODEL RESULT

Imports a script, makes each of its model classes without arguments, and loads MODEL ("" for none) into them strictly;
writes to RESULT, as JSON, what it found. It runs in a process of its own, in the student's place: a stranger's script
is not imported into the grader's.
"""
import ast
import importlib.util
import json
import os
import pickletools
import sys
import zipfile


def words(error):
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def run_definitions(script, module):
    """Runs the imports, definitions and assignments alone, of a script that works when imported; returns the last
    failed import in words, or ""."""
    kinds, failed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Try), ""
    with open(script, "rb") as file:
        body = ast.parse(file.read()).body
    for node in body:
        if isinstance(node, kinds):
            try:
                exec(compile(ast.Module([node], []), script, "exec"), module.__dict__)
            except (Exception, SystemExit) as error:
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    failed = words(error)
    return failed


def foreign(path):
    """Names of what a file of torch.save pickles besides tensors, read without unpickling."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            pickled = archive.read(name)
    except Exception:
        return []
    named = [argument.replace(" ", ".") for opcode, argument, _ in pickletools.genops(pickled)
             if opcode.name == "GLOBAL"]
    named = [name for name in named if not name.startswith(("torch._utils.", "torch.storage", "collections."))
             and not (name.startswith("torch.") and name.count(".") == 1)]
    return sorted(named, key=lambda name: name.startswith("torch."))


def read_state(model):
    """(content of a model file or None, what is wrong with it as a state_dict or "")."""
    import torch
    try:
        state = torch.load(model, map_location="cpu", weights_only=True)
    except Exception as error:
        names = foreign(model)
        return None, (f"found {names[0]}, pickled whole: torch.save(model.state_dict(), path)" if names
                      else "found: " + words(error)[:200])
    if not isinstance(state, dict):
        return state, f"found a {type(state).__name__}"
    if any(isinstance(value, dict) for value in state.values()) or not any(
            isinstance(value, torch.Tensor) for value in state.values()):
        keys = ", ".join(map(repr, list(state)[:5]))
        return state, f"found a dict of {keys}: save the state_dict itself, not a dict that holds it"
    return state, ""


def probe(script, model):
    """{"import", "classes", "file", "loads", "parameters"}: what is wrong with the import, with each class and with
    the model file, the class that loads it, and the number of parameters."""
    found = {"import": "", "classes": {}, "file": "", "loads": "", "parameters": 0}
    sys.argv = [script]
    sys.path.insert(0, os.path.dirname(script))
    name = os.path.splitext(os.path.basename(script))[0]
    spec = importlib.util.spec_from_file_location(name, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        found["import"] = words(error)
        found["import"] = run_definitions(script, module) or found["import"]
    import torch
    made = {}
    for label, thing in list(vars(module).items()):
        if isinstance(thing, type) and issubclass(thing, torch.nn.Module) and thing.__module__ == name:
            try:
                made[label] = thing()
                found["classes"][label] = ""
            except Exception as error:
                found["classes"][label] = words(error)
    if model:
        state, found["file"] = read_state(model)
        if isinstance(state, dict):
            found["parameters"] = sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor))
        for label, network in made.items():
            if not found["file"] and not found["loads"]:
                try:
                    network.load_state_dict(state)
                    found["loads"] = label
                except Exception as error:
                    found["classes"][label] = words(error)
    counted = {label: sum(p.numel() for p in network.parameters()) for label, network in made.items()}
    if found["loads"]:
        found["parameters"] = counted[found["loads"]]
    return {**found, "parameters": found["parameters"] or max(counted.values(), default=0)}


if __name__ == "__main__":
    script, model, result = sys.argv[1:]
    answer = probe(script, model)
    with open(result, "w") as file:
        json.dump(answer, file)
