"""python probe.py SCRIPT MODEL RESULT

Runs the imports and definitions of a script, makes each of its model classes without arguments, and loads MODEL ("" for
none) into them strictly; writes to RESULT, as JSON, what it found. It runs in a process of its own, in the student's
place: a stranger's script is not imported into the grader's.
"""
import ast
import json
import os
import re
import sys
import types

DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Try, ast.If)


def words(error):
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def run_definitions(script, module):
    """Runs the definitions of a script in a module, and nothing that would begin its work; returns the last failed
    import in words, or ""."""
    failed = ""
    with open(script, "rb") as file:
        body = ast.parse(file.read()).body
    for node in body:
        if isinstance(node, DEFINITIONS):
            try:
                exec(compile(ast.Module([node], []), script, "exec"), module.__dict__)
            except (Exception, SystemExit) as error:
                failed = words(error) if isinstance(error, ImportError) else failed
    return failed


def read_state(model):
    """(content of a model file or None, what is wrong with it as a state_dict or "")."""
    import torch
    try:
        state = torch.load(model, map_location="cpu", weights_only=True)
    except Exception as error:
        whole = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))  # what torch's guard refuses to unpickle
        return None, (f"found {whole[1]}, pickled whole: torch.save(model.state_dict(), path)" if whole
                      else "found: " + words(error)[:200])
    if not isinstance(state, dict):
        return state, f"found a {type(state).__name__}"
    if any(isinstance(value, dict) for value in state.values()) or not any(
            isinstance(value, torch.Tensor) for value in state.values()):
        keys = ", ".join(map(repr, list(state)[:5]))
        return state, f"found a dict of {keys}: save the state_dict itself, not a dict that holds it"
    return state, ""


def probe(script, model):
    """{"import", "classes", "file", "loads", "parameters"}: what is wrong with the imports, with each class and with
    the model file, the class that loads it, and the number of parameters."""
    found = {"import": "", "classes": {}, "file": "", "loads": "", "parameters": 0}
    name = os.path.splitext(os.path.basename(script))[0]
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__, sys.argv = script, [script]
    sys.path.insert(0, os.path.dirname(script))
    found["import"] = run_definitions(script, module)
    import torch
    state, networks = {}, {}
    for label, thing in list(vars(module).items()):
        if isinstance(thing, type) and issubclass(thing, torch.nn.Module) and thing.__module__ == name:
            try:
                networks[label] = thing()
                found["classes"][label] = ""
            except Exception as error:
                found["classes"][label] = words(error)
    if model:
        state, found["file"] = read_state(model)
    for label, network in networks.items():
        if model and not found["file"] and not found["loads"]:
            try:
                network.load_state_dict(state)
                found["loads"] = label
            except Exception as error:
                found["classes"][label] = words(error)
    sizes = {label: sum(p.numel() for p in network.parameters()) for label, network in networks.items()}
    stored = sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor)
                 ) if isinstance(state, dict) else 0
    found["parameters"] = sizes.get(found["loads"]) or stored or max(sizes.values(), default=0)
    return found


if __name__ == "__main__":
    target = sys.argv[3]  # the script gets an argv of its own
    answer = probe(*sys.argv[1:3])
    with open(target, "w") as file:
        json.dump(answer, file)
