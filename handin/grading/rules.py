"""The course's rules, read from a script's syntax tree. Names are resolved through imports and through constants that
are assigned once; undecided cases are warnings, not failures."""
import ast
import collections
import importlib.util
import io
import sys
import tokenize

from handin.grading.contract import Row

MODEL_ZOOS = ("torchvision.models", "timm", "torch.hub", "transformers", "pretrainedmodels", "efficientnet_pytorch",
              "huggingface_hub", "open_clip", "clip", "segmentation_models_pytorch", "tensorflow", "keras", "fastai",
              "tensorflow_hub", "mmpretrain", "mmcls", "torch.utils.model_zoo")
WEIGHT_LOADERS = ("load_state_dict_from_url", "load_url", "from_pretrained")  # matched as any attribute
DOWNLOADS = ("urllib.request", "requests", "wget", "gdown")
CODE_RUNNERS = ("subprocess", "runpy", "ctypes", "os.system", "os.popen")  # may run code that the rules cannot see
MIXTURE_LIBRARIES = ("scipy.cluster", "torch.distributions.MixtureSameFamily",
                     "torch.distributions.mixture_same_family")
ALLOWED_PACKAGES = ("torch", "torchvision", "numpy", "sklearn", "skimage", "matplotlib", "scipy", "PIL", "tqdm",
                    "pandas", "seaborn")
STDLIB = getattr(sys, "stdlib_module_names", ())  # from Python 3.10 on
SEED = "torch.manual_seed(0)"
RULES = ("no model zoo", "no pre-trained weights", "scikit-learn", "own mixture", SEED, "no plt.show()", "map_location",
         "imports", "device")
DIGITS_ONLY = ("scikit-learn", "own mixture")
UNKNOWN = object()  # the value of a non-constant expression


def _within(name, *modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def _is_provided(package):
    """Whether the course provides a package; before Python 3.10, which does not list its own, whether it exists."""
    return package in (*ALLOWED_PACKAGES, *STDLIB) or not STDLIB and bool(package and importlib.util.find_spec(package))


class Visitor(ast.NodeVisitor):
    """Collects `findings` {rule: [(status, line, text)]} of a syntax tree."""

    def __init__(self, tree):
        self.findings = collections.defaultdict(list)
        self.names = {}  # imported names: {name: dotted name}
        self.assigned = collections.defaultdict(list)  # {name: expressions}
        self.mentioned = set()  # all names and attributes
        self.functions = []  # that enclose the current node
        for node in ast.walk(tree):  # first, so that a use before an assignment is also resolved
            self.mentioned.add(getattr(node, "attr", getattr(node, "id", None)))
            for target in node.targets if isinstance(node, ast.Assign) else ():
                self.assigned[getattr(target, "id", None)].append(node.value)
        self.visit(tree)

    def note(self, rule, node, text, status="fail"):
        self.findings[rule].append((status, node.lineno, text))

    def resolve(self, node):
        """The dotted name that an imported name or its attribute refers to, else ""."""
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value)
            return f"{base}.{node.attr}" if base else ""
        return self.names.get(node.id, "") if isinstance(node, ast.Name) else ""

    def constant_value(self, node):
        """The value of a constant expression, or UNKNOWN."""
        if isinstance(node, ast.Name) and len(self.assigned[node.id]) == 1:
            node = self.assigned[node.id][0]
        return node.value if isinstance(node, ast.Constant) else UNKNOWN

    def unused(self):
        """Name of the function around the current node if nothing mentions it, else ""."""
        name = self.functions[-1] if self.functions else ""
        return "" if name.startswith("__") or name in self.mentioned else name

    def check_name(self, name, node):
        """Notes the rules that a dotted name, imported or used, breaks."""
        if _within(name, *MODEL_ZOOS):
            self.note("no model zoo", node, name)
        if name.split(".")[-1] in WEIGHT_LOADERS:
            self.note("no pre-trained weights", node, name)
        allowed = _within(name, "sklearn.metrics") or name == "sklearn" or name.startswith("sklearn.__")
        if _within(name, "sklearn") and not allowed:
            self.note("scikit-learn", node, f"{name}, where only sklearn.metrics is allowed")
        if _within(name, *MIXTURE_LIBRARIES, "sklearn.mixture", "sklearn.cluster"):
            self.note("own mixture", node, f"{name}: the mixture must be written from scratch",
                      "fail" if _within(name, "sklearn") else "warn")
        if _within(name, *DOWNLOADS):
            self.note("no pre-trained weights", node, f"{name}, which may download weights", "warn")
        if _within(name, *CODE_RUNNERS):
            self.note("imports", node, f"{name}, which may run anything", "warn")

    def visit_Import(self, node):
        before = f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            if alias.name == "*" and _within(before[:-1], "torchvision"):
                self.note("no model zoo", node, f"from {before[:-1]} import *, which imports the models", "warn")
            name, top = before + alias.name, alias.name.split(".")[0]
            self.names[alias.asname or top] = name if alias.asname or before else top
            self.check_name(name, node)
            if not _is_provided(name.split(".")[0]):
                self.note("imports", node, f"{name.split('.')[0] or name}, which the course does not provide (a script "
                          "runs alone)", "warn")

    visit_ImportFrom = visit_Import

    def visit_Name(self, node):
        self.check_name(self.resolve(node), node)

    def visit_Attribute(self, node):
        name = self.resolve(node)
        self.check_name(name, node)
        if not name and node.attr in WEIGHT_LOADERS:  # it may be a method of the script
            self.note("no pre-trained weights", node, node.attr, "warn")
        if not name:
            self.generic_visit(node)

    def visit_FunctionDef(self, node):
        self.functions.append(node.name)
        self.generic_visit(node)
        self.functions.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Call(self, node):
        name, method = self.resolve(node.func), getattr(node.func, "attr", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        values = [self.constant_value(argument) for argument in (*node.args, *keywords.values())]
        if name in ("torch.manual_seed", "torch.random.manual_seed"):
            value = values[0] if values else UNKNOWN
            self.note(SEED, node, *(
                (f"torch.manual_seed is only in {self.unused()}(), which is never called", "fail") if self.unused() else
                ("cannot tell whether torch.manual_seed is called with 0", "warn") if value is UNKNOWN else
                (f"torch.manual_seed is called with {value!r}, not 0", "pass" if value == 0 else "fail")))
        elif name in ("matplotlib.pyplot.show", "pylab.show", "matplotlib.pylab.show"):
            self.note("no plt.show()", node, "plt.show() waits for someone to close the window", "warn")
        elif name == "torch.load" and len(node.args) < 2 and not {"map_location", None} & set(keywords):
            self.note("map_location", node, "torch.load without map_location: a model saved on a GPU will not load "
                      "without one", "warn")
        elif name == "importlib.import_module" or getattr(node.func, "id", "") in ("__import__", "exec", "eval"):
            self.note("imports", node, f"{name or node.func.id}(), which may import anything", "warn")
        elif method == "cuda" or method in ("to", "device") and any(str(value).startswith("cuda") for value in values):
            if not self.mentioned & {"is_available", "device_count"}:
                self.note("device", node, f"{ast.unparse(node)} without a check of torch.cuda.is_available()", "warn")
        for key, given in keywords.items():
            value, shown = self.constant_value(given), f"{key}={ast.unparse(given)}"
            imported = "fail" if name else "warn"  # otherwise it is defined in the script
            if key == "pretrained" and value is not False and value is not None:
                self.note("no pre-trained weights", node, shown, "warn" if value is UNKNOWN else imported)
            elif key in ("weights", "weights_backbone") and (
                    _within(name, *MODEL_ZOOS) and value is not None or isinstance(value, str) and not name):
                self.note("no pre-trained weights", node, shown, imported)
        self.generic_visit(node)


def check_rules(part, source):
    """Rows of all rules for a script's source, bytes or text. Each rule reports its worst finding; the rule of the
    seed its best, with a warning if another seed is set, too."""
    try:
        if isinstance(source, bytes):  # ast.parse ignores comments that Python cannot decode
            source.decode(tokenize.detect_encoding(io.BytesIO(source).readline)[0])
        visitor = Visitor(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if getattr(error, "lineno", None) else ""
        encoding = "; save the file as UTF-8" if "codec" in str(error) or "encoding" in str(error) else ""
        return [Row(part, "syntax", "fail", "", f"{line}{getattr(error, 'msg', None) or error}{encoding}")]
    rows, order = [Row(part, "syntax", "pass")], ("fail", "warn", "pass")
    for rule in RULES:
        findings = sorted(visitor.findings[rule])
        status = (max if rule == SEED else min)((kind for kind, _, _ in findings), key=order.index, default="pass")
        lines = list(dict.fromkeys(f"line {line}: {text}" for kind, line, text in findings if kind == status))
        detail = ", ".join(lines[:3]) + (f" and {len(lines) - 3} more" if lines[3:] else "")
        if rule == SEED and not findings:
            status, detail = (("warn", "cannot tell whether torch.manual_seed is called with 0")
                              if "manual_seed" in visitor.mentioned else
                              ("fail", "torch.manual_seed(0) is never called"))
        others = [f"line {line}: {text}" for kind, line, text in findings if kind == "fail"]
        if rule == SEED and status == "pass" and others:
            status, detail = "warn", "called with 0, but also " + ", ".join(others[:3])
        if part == "digits" or rule not in DIGITS_ONLY:
            rows.append(Row(part, rule, status, "", "" if status == "pass" else detail))
    return rows
