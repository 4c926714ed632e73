"""A GPU for machines without one: runs scripts or modules as if they had found CUDA or MPS.

    python tests/pretend_gpu.py cuda:7.5 SCRIPT WORD...    a CUDA device of compute capability 7.5
    python tests/pretend_gpu.py mps -m MODULE WORD...
    python tests/pretend_gpu.py mps SCRIPT WORD... + SCRIPT WORD...    one after the other

Tensors of that device lie in the CPU's memory and compute there, in float32, but refuse what those of a GPU refuse:
company of tensors on the CPU, NumPy, the CPU's generators; on MPS float64 as well, and batch norms in channels_last,
which it takes without a word and gives wrong gradients (pytorch/pytorch#175189). What this cannot show: half
precision, kernels that a GPU lacks, speed.
"""
import functools
import os
import platform
import runpy
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ATEN = torch.ops.aten
COPIES = {ATEN._to_copy.default, ATEN.copy_.default}
INDEXING = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default}
NORMS = {"aten::native_batch_norm", "aten::native_batch_norm_backward"}


class RemoteTensor(torch.Tensor):
    """What stands for the tensor `near` of the CPU on another device."""
    is_meta = False
    is_cuda = property(lambda self: self.where.type == "cuda")
    is_mps = property(lambda self: self.where.type == "mps")
    device = property(lambda self: self.where)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near, where):
        shape = torch.empty_strided(near.size(), near.stride(), dtype=near.dtype, device="meta")
        self = torch.Tensor._make_subclass(cls, shape, False)
        self.near, self.where = near, where
        return self

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, how):
        return format(self.item(), how)

    def new_tensor(self, data):
        return torch.tensor(data, dtype=self.dtype, device=self.where)

    def numpy(self):
        raise TypeError(f"expected a tensor on the CPU for NumPy, found one on {self.where}")

    def __reduce_ex__(self, protocol):  # a file's tensors come back on the CPU, by map_location
        return self.near.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return PretendGPU.active.computed(operator, args, kwargs or {})


class PretendGPU(TorchDispatchMode):
    """Within, `device` is there."""
    active = None

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device.type, 0)
        PretendGPU.active = self

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return self.computed(operator, args, kwargs or {})

    def computed(self, operator, args, kwargs):
        """The operator's result, on the device where it belongs. Raises RuntimeError or TypeError as a GPU would."""
        values = tree_flatten((args, kwargs))[0]
        remote = [value for value in values if isinstance(value, RemoteTensor)]
        near = [value for value in values if isinstance(value, torch.Tensor) and not isinstance(value, RemoteTensor)]
        asked = kwargs.get("device")
        away = bool(remote) if asked is None else torch.device(asked).type in (self.device.type, "meta")
        if remote or away:
            self._check(operator, values, remote, near)
            if asked is not None:
                kwargs = {**kwargs, "device": torch.device("cpu")}
            kwargs.pop("pin_memory", None)
        args, kwargs = tree_map(lambda value: value.near if isinstance(value, RemoteTensor) else value, (args, kwargs))
        result = operator(*args, **kwargs)
        if not away:
            return result
        known = {id(value.near): value for value in remote}  # of what is changed in place
        return tree_map(lambda value: self._sent(value, known) if isinstance(value, torch.Tensor) else value, result)

    def _sent(self, value, known):
        if self.device.type == "mps" and value.dtype == torch.float64:
            raise TypeError("expected another dtype on MPS, found float64")
        return known.get(id(value)) if id(value) in known else RemoteTensor(value, self.device)

    def _check(self, operator, values, remote, near):
        if any(isinstance(value, torch.Generator) for value in values):
            raise RuntimeError(f"{operator}: expected a generator on {self.device}, found one on cpu")
        strangers = [value for value in near if value.dim() or operator._schema.name.startswith("aten::_fused")]
        if operator in INDEXING:  # a GPU takes the CPU's indices, the CPU not a GPU's
            strangers = [] if isinstance(values[0], RemoteTensor) else strangers
        if remote and strangers and operator not in COPIES:
            raise RuntimeError(f"{operator}: expected all tensors on {self.device}, found one of shape "
                               f"{tuple(strangers[0].shape)} on cpu")
        if self.device.type == "mps" and operator._schema.name in NORMS and not all(
                value.is_contiguous() for value in remote if value.dim() == 4):
            raise RuntimeError(f"{operator}: expected contiguous tensors on MPS, found channels_last")


def pretend(kind, capability=(8, 0)):
    """A PretendGPU of this kind, "cuda" or "mps", of which torch is told for the rest of the process."""
    cuda = kind == "cuda"
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to: new parameters, not new data in old
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda self: None
    for module, there in ((torch.cuda, cuda), (torch.backends.mps, not cuda)):
        module.is_available = functools.wraps(module.is_available)(functools.partial(bool, there))
    for name, answer in {"_lazy_init": None, "current_device": 0, "device_count": int(cuda), "set_device": None,
                         "empty_cache": None, "is_current_stream_capturing": False, "get_device_name": "pretended",
                         "is_bf16_supported": capability >= (8, 0), "get_device_capability": capability,
                         "mem_get_info": (8 << 30, 16 << 30)}.items():
        setattr(torch.cuda, name, functools.partial(_answer, answer))
    torch.mps.empty_cache = functools.partial(_answer, None)
    platform.processor = functools.partial(_answer, "arm")  # Lightning Fabric asks, for MPS
    plain = torch.tensor
    torch.tensor = lambda data, *, device=None, **options: (
        plain(data, **options) if device is None else plain(data, **options).to(device))
    return PretendGPU(torch.device(kind))


def _answer(answer, *_, **__):
    return answer


def main():
    (kind, _, capability), words = sys.argv[1].partition(":"), sys.argv[2:]
    with pretend(kind, tuple(map(int, capability.split("."))) if capability else (8, 0)):
        while words:
            end = words.index("+") if "+" in words else len(words)
            command, words = words[:end], words[end + 1:]
            try:
                run(command)
            except SystemExit as ended:
                if ended.code:
                    raise


def run(command):
    """Runs SCRIPT WORD... or -m MODULE WORD... in this process."""
    module = command[0] == "-m"
    sys.argv = command[module:]
    if module:
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
