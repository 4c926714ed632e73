"""python probe.py SCRIPT MODEL REPORT

Writes to REPORT, as JSON, the contents of a script and a model file; either may be "". Runs the imports and definitions
of SCRIPT, instantiates each of its model classes without arguments and loads MODEL strictly; without SCRIPT, only reads
the file. It runs in a sandbox: students' code is not imported into the grader.
"""
import __future__

import ast
import json
import os
import re
import sys
import types

DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Try, ast.If)


def error_text(error):
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def run_definitions(script, module):
    """Runs only the definitions of a script in a module, no other statements. Returns the last failed import as text,
    or ""."""
    failed = ""
    with open(script, "rb") as file:
        body = ast.parse(file.read()).body
    future = {alias.name for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"
              for alias in node.names}
    flags = __future__.annotations.compiler_flag if "annotations" in future else 0
    for node in body:
        if isinstance(node, DEFINITIONS):
            try:
                exec(compile(ast.Module([node], []), script, "exec", flags), module.__dict__)
            except (Exception, SystemExit) as error:
                failed = error_text(error) if isinstance(error, ImportError) else failed
    return failed


def read_state_dict(model):
    """(content of a model file or None, what is wrong with it as a state_dict or "")."""
    import torch
    try:
        state = torch.load(model, map_location="cpu", weights_only=True)
    except Exception as error:
        pickled = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))  # the class that torch refuses to unpickle
        return None, (f"found {pickled[1]}, pickled whole: torch.save(model.state_dict(), path)" if pickled
                      else "found: " + error_text(error)[:200])
    if not isinstance(state, dict):
        return state, f"found a {type(state).__name__}"
    values = {key: value for key, value in state.items() if not str(key).endswith("_extra_state")}
    if any(isinstance(value, dict) for value in values.values()) or not any(
            isinstance(value, torch.Tensor) for value in values.values()):
        keys = ", ".join(map(repr, list(values)[:5]))
        return state, f"found a dict of {keys}: save the state_dict itself, not a dict that contains it"
    return state, ""


def probe(script, model):
    """{"import", "classes", "loads"}: what is wrong with the imports of the script and with each class, and the class
    that loads the model; {"file", "parameters", "narrowest"}: what is wrong with the model file, the number of
    parameters, and the smallest dimension of the file's weight matrices, which for an MLP VAE is that of its latent."""
    import torch
    report = {"import": "", "classes": {}, "loads": "", "file": "", "parameters": 0, "narrowest": 0}
    state, networks = {}, {}
    if model:
        state, report["file"] = read_state_dict(model)
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)] if isinstance(state, dict) else []
    report["parameters"] = sum(tensor.numel() for tensor in tensors)
    report["narrowest"] = min((min(tensor.shape) for tensor in tensors if tensor.ndim == 2), default=0)
    if not script:
        return report
    name = os.path.splitext(os.path.basename(script))[0]
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__, sys.argv = script, [script]
    sys.path.insert(0, os.path.dirname(script))
    report["import"] = run_definitions(script, module)
    for label, cls in list(vars(module).items()):
        if isinstance(cls, type) and issubclass(cls, torch.nn.Module) and cls.__module__ == name:
            try:
                networks[label] = cls()
                report["classes"][label] = ""
            except Exception as error:
                report["classes"][label] = error_text(error)
    for label, network in networks.items():
        if model and not report["file"] and not report["loads"]:
            try:
                network.load_state_dict(state)
                report["loads"] = label
            except Exception as error:
                report["classes"][label] = error_text(error)
    sizes = {label: sum(p.numel() for p in network.parameters()) for label, network in networks.items()}
    report["parameters"] = sizes.get(report["loads"]) or report["parameters"] or max(sizes.values(), default=0)
    return report


if __name__ == "__main__":
    target = sys.argv[3]  # the script gets its own argv
    result = probe(*sys.argv[1:3])
    with open(target, "w") as file:
        json.dump(result, file)
