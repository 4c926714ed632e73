"""The course's rules, read from a script's syntax tree. Names are followed through imports and through constants that
are assigned once, no further: what that does not decide is a warning, not a failure."""
import ast
import re
import sys

from handin.contract import Row

MODEL_ZOOS = ("torchvision.models", "timm", "torch.hub", "transformers", "pretrainedmodels", "efficientnet_pytorch",
              "huggingface_hub", "open_clip", "clip", "segmentation_models_pytorch", "tensorflow", "keras", "fastai",
              "tensorflow_hub", "mmpretrain", "mmcls", "torch.utils.model_zoo")
LOADERS = ("load_state_dict_from_url", "load_url", "from_pretrained")  # of weights, whatever they are attributes of
PACKAGES = ("torch", "torchvision", "numpy", "sklearn", "skimage", "matplotlib", "scipy", "PIL", "tqdm", "pandas")
BY_NAME = ("importlib.import_module", "__import__", "exec", "eval")  # what these bring in, a syntax tree does not show


def _within(name, modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


class Visitor(ast.NodeVisitor):
    """What a script imports, uses and calls, each with its line."""

    def __init__(self, tree):
        self.names = {}       # what a name in the script stands for: {name: dotted name}
        self.imported = []    # (dotted name, line) of each import
        self.used = []        # (dotted name, line) of each name or attribute that begins with an import
        self.calls = []       # (dotted name, call node, enclosing function or None)
        self.functions = []   # definitions
        self.constants = {}   # {name: value} of those assigned a constant, None where more than once
        self.mentioned = set()  # all names and attributes
        self._around = []
        for node in ast.walk(tree):  # first, so that a use above its import is known, too
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.name if alias.asname else alias.name.split(".")[0]
                    self.names[alias.asname or name] = name
                    self.imported.append((alias.name, node.lineno))
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name = f"{'.' * node.level}{node.module or ''}.{alias.name}"
                    self.names[alias.asname or alias.name] = name
                    self.imported.append((name, node.lineno))
        self.visit(tree)

    def dotted(self, node):
        """The dotted name, from an import on, that a name or attribute stands for; a plain name as it is; else ""."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return f"{base}.{node.attr}" if base else ""
        return ""

    def visit_Name(self, node):
        self.mentioned.add(node.id)
        if node.id in self.names:
            self.used.append((self.names[node.id], node.lineno))

    def visit_Attribute(self, node):
        self.mentioned.add(node.attr)
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in self.names:
            self.used.append((self.dotted(node), node.lineno))
        self.generic_visit(node)

    def visit_Call(self, node):
        self.calls.append((self.dotted(node.func), node, self._around[-1] if self._around else None))
        self.generic_visit(node)

    def visit_FunctionDef(self, node):
        self.functions.append(node)
        self._around.append(node)
        self.generic_visit(node)
        self._around.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Assign(self, node):
        for target in node.targets:
            if isinstance(target, ast.Name):
                once = target.id not in self.constants and isinstance(node.value, ast.Constant)
                self.constants[target.id] = node.value.value if once else None
        self.generic_visit(node)

    def value(self, node):
        """(True, the constant) that an expression is, or (False, None)."""
        if isinstance(node, ast.Constant):
            return True, node.value
        known = isinstance(node, ast.Name) and self.constants.get(node.id) is not None
        return known, self.constants[node.id] if known else None

    def calls_of(self, *names):
        """(call node, enclosing function or None) of what has one of the dotted names."""
        return [(node, around) for name, node, around in self.calls if name in names]

    def unused(self, function):
        """Whether nothing in the script mentions a function."""
        return function is not None and function.name not in self.mentioned


def _lines(evidence, most=3):
    evidence = sorted(dict.fromkeys(evidence), key=lambda item: item[1])
    more = f" and {len(evidence) - most} more" if len(evidence) > most else ""
    return ", ".join(f"line {line}: {what}" for what, line in evidence[:most]) + more


def _text(node):
    """The node as source text where this Python can write it, for a message."""
    return (ast.unparse(node) if hasattr(ast, "unparse") else type(node).__name__)[:60]


def _shortest(found):
    return [(name, line) for name, line in found
            if not any(other == line and name.startswith(shorter + ".") for shorter, other in found)]


def _model_zoo(seen):
    found = [item for item in [*seen.imported, *seen.used] if _within(item[0], MODEL_ZOOS)]
    return ("fail", _lines(_shortest(found))) if found else ("pass", "")


def _pretrained(seen):
    found = [(name.split(".")[-1], line) for name, line in [*seen.imported, *seen.used] if name.endswith(LOADERS)]
    unsure = []
    for name, node, _ in seen.calls:
        if name.split(".")[-1] in LOADERS or isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS:
            found.append((_text(node.func), node.lineno))
        for keyword in node.keywords:
            known, value = seen.value(keyword.value)
            shown = f"{keyword.arg}={_text(keyword.value)}", node.lineno
            if keyword.arg == "pretrained" and value is not False and value is not None:
                found.append(shown)
            elif keyword.arg in ("weights", "weights_backbone") and (
                    isinstance(value, str) or not known and _within(name, MODEL_ZOOS)):
                found.append(shown)
            elif keyword.arg == "pretrained" and not known:
                unsure.append(shown)
    return ("fail", _lines(found)) if found else ("warn", _lines(unsure)) if unsure else ("pass", "")


def _scikit_learn(seen):
    found = [(name, line) for name, line in [*seen.imported, *seen.used]
             if _within(name, ("sklearn",)) and name != "sklearn" and not _within(name, ("sklearn.metrics",))]
    return ("fail", f"only sklearn.metrics is allowed here; {_lines(_shortest(found))}") if found else ("pass", "")


def _seed(seen):
    calls, found = seen.calls_of("torch.manual_seed", "torch.random.manual_seed"), []
    for node, around in calls:
        given = node.args[0] if node.args else next((keyword.value for keyword in node.keywords), None)
        known, value = seen.value(given)
        if seen.unused(around):
            found.append(("fail", f"line {node.lineno}: torch.manual_seed stands in {around.name}(), which nothing "
                                  "calls"))
        elif known and value == 0:
            return "pass", ""
        elif known:
            found.append(("fail", f"line {node.lineno}: torch.manual_seed is given {value!r}, not 0"))
        else:
            found.append(("warn", f"line {node.lineno}: cannot tell whether torch.manual_seed({_text(given)}) is "
                                  "given 0"))
    if "manual_seed" in seen.mentioned and not calls:
        return "warn", "cannot tell whether torch.manual_seed is called with 0"
    return max(found, default=("fail", "torch.manual_seed(0) is never called"))  # "warn" comes after "fail"


def _show(seen):
    calls = seen.calls_of("matplotlib.pyplot.show", "pylab.show", "matplotlib.pylab.show")
    live = [("plt.show()", node.lineno) for node, around in calls if not seen.unused(around)]
    return ("fail", f"{_lines(live)}: where there is a display it waits until someone closes the window") if live else (
        "warn", "plt.show() in a function that nothing calls") if calls else ("pass", "")


def _map_location(seen):
    found = [("torch.load without map_location", node.lineno) for node, _ in seen.calls_of("torch.load")
             if len(node.args) < 2 and not {"map_location", None} & {keyword.arg for keyword in node.keywords}]
    return ("warn", f"{_lines(found)}: a model saved on a GPU will not load without one") if found else ("pass", "")


def _imports(seen):
    known = {*PACKAGES, *sys.builtin_module_names, *getattr(sys, "stdlib_module_names", ())}
    found = [(name.split(".")[0] or name, line) for name, line in seen.imported if name.split(".")[0] not in known]
    if not hasattr(sys, "stdlib_module_names"):  # before Python 3.10
        import importlib.util
        found = [(name, line) for name, line in found if importlib.util.find_spec(name) is None] if found else []
    found += [(f"{name}()", node.lineno) for name, node, _ in seen.calls if name in BY_NAME]
    return ("warn", f"outside what the course provides: {_lines(found)}") if found else ("pass", "")


def _device(seen):
    """cuda by name where nothing asks whether it is there."""
    if seen.mentioned & {"is_available", "device_count"}:
        return "pass", ""
    found = []
    for _, node, _ in seen.calls:
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        given = [seen.value(part)[1] for part in [*node.args, *(keyword.value for keyword in node.keywords)]]
        if method == "cuda" or method in ("to", "device") and any(str(text).startswith("cuda") for text in given):
            found.append((_text(node), node.lineno))
    return ("warn", f"a GPU is assumed, torch.cuda.is_available() never asked: {_lines(found)}") if found else (
        "pass", "")


def _identifiers(node):
    return {part.id if isinstance(part, ast.Name) else part.attr for part in ast.walk(node)
            if isinstance(part, (ast.Name, ast.Attribute))}


def _sampled_latents(seen):
    """The reparameterisation belongs to training; what is only looked at, without gradients, is the mean."""
    found = [(f"{node.func.attr}() in {around.name}()", node.lineno) for _, node, around in seen.calls
             if around and isinstance(node.func, ast.Attribute) and re.match("_?(reparam|sample_z|sample_latent)",
                                                                              node.func.attr)
             and _identifiers(around) & {"no_grad", "inference_mode"} and not _identifiers(around) & {"backward"}]
    return ("warn", "a latent drawn at random where the mixture and the tests want the encoder's mean: "
                    f"{_lines(found)}") if found else ("pass", "")


def _mixing_weights(seen):
    """A prediction from the components' densities alone."""
    found = [(f"{function.name}()", function.lineno) for function in seen.functions
             if re.search("predict|classify", function.name)
             and any(re.search("pdf|gauss|densit|mahalanobis", name) for name in _identifiers(function))
             and not any(re.search("weight|mix|coef|phi|prior|alpha|resp|posterior|(^|_)pis?(_|$)", name.lower())
                         for name in _identifiers(function))]
    return ("warn", f"densities compared without the mixing weights: {_lines(found)}") if found else ("pass", "")


def _few_images(seen):
    """A mixture fitted to the labelled images."""
    found = [(_text(node), node.lineno) for _, node, _ in seen.calls
             if isinstance(node.func, ast.Attribute) and node.func.attr in ("fit", "fit_predict") and node.args
             and any(re.search("(^|_)val(id|idation)?(_|$)", name.lower()) for name in _identifiers(node.args[0]))]
    return ("warn", "the mixture is fitted to the labelled images, not to the training ones: "
                    f"{_lines(found)}") if found else ("pass", "")


RULES = {"no model zoo": _model_zoo, "no pre-trained weights": _pretrained, "scikit-learn": _scikit_learn,
         "torch.manual_seed(0)": _seed, "no plt.show()": _show, "map_location": _map_location, "imports": _imports,
         "device": _device, "means, not samples": _sampled_latents, "mixing weights": _mixing_weights,
         "mixture's images": _few_images}
OF_DIGITS = ("scikit-learn", "means, not samples", "mixing weights", "mixture's images")


def check_rules(part, source):
    """Rows of all rules for a script's source, bytes or text. `part` is "birds" or "digits"; scikit-learn is restricted
    in the latter alone."""
    try:
        seen = Visitor(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if getattr(error, "lineno", None) else ""
        return [Row(part, "syntax", "fail", "", f"{line}{getattr(error, 'msg', None) or error}")]
    return [Row(part, "syntax", "pass"), *(Row(part, check, *(lambda status, detail: (status, "", detail))(*rule(seen)))
                                           for check, rule in RULES.items()
                                           if part == "digits" or check not in OF_DIGITS)]
