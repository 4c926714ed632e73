"""The course's rules, read from a script's syntax tree. Names are followed through imports and through constants that
are assigned once, no further: what that does not decide is a warning, not a failure."""
import ast
import collections
import importlib.util
import re
import sys

from handin.contract import Row

MODEL_ZOOS = ("torchvision.models", "timm", "torch.hub", "transformers", "pretrainedmodels", "efficientnet_pytorch",
              "huggingface_hub", "open_clip", "clip", "segmentation_models_pytorch", "tensorflow", "keras", "fastai",
              "tensorflow_hub", "mmpretrain", "mmcls", "torch.utils.model_zoo")
LOADERS = ("load_state_dict_from_url", "load_url", "from_pretrained")  # of weights, whatever they are attributes of
PACKAGES = ("torch", "torchvision", "numpy", "sklearn", "skimage", "matplotlib", "scipy", "PIL", "tqdm", "pandas")
SEED = "torch.manual_seed(0)"
RULES = {  # what stands before the lines that a rule finds
    "no model zoo": "", "no pre-trained weights": "", SEED: "", "no plt.show()": "waits until someone closes it: ",
    "map_location": "a model saved on a GPU will not load without one: ",
    "imports": "outside what the course provides: ",
    "device": "a GPU is assumed, torch.cuda.is_available() never asked: "}
RULES_OF_DIGITS = {
    "scikit-learn": "only sklearn.metrics is allowed here; ",
    "means, not samples": "a latent drawn at random where the mixture and the tests want the encoder's mean: ",
    "mixing weights": "densities compared without the mixing weights: ",
    "mixture's images": "the mixture is fitted to the labelled images, not to the training ones: "}
UNKNOWN = object()  # the value of an expression that is no constant


def _within(name, *modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def _identifiers(node):
    """All names and attributes below a node."""
    return {part.id if isinstance(part, ast.Name) else part.attr for part in ast.walk(node)
            if isinstance(part, (ast.Name, ast.Attribute))}


class Visitor(ast.NodeVisitor):
    """Finds {rule: [(status, line, what)]} in a syntax tree."""

    def __init__(self, tree):
        self.found = collections.defaultdict(list)
        self.names = {}  # what a name stands for by an import: {name: dotted name}
        self.assigned = collections.defaultdict(list)  # {name: expressions}
        self.functions = []  # those around the node at hand
        self.mentioned = _identifiers(tree)
        for node in ast.walk(tree):  # first, so that a use above its import is known, too
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    whole = alias.asname or isinstance(node, ast.ImportFrom)
                    self.names[alias.asname or first] = self.imported(node, alias) if whole else first
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self.assigned[target.id].append(node.value)
        self.visit(tree)

    def note(self, rule, node, what, status="fail"):
        self.found[rule].append((status, node.lineno, what))

    @staticmethod
    def imported(node, alias):
        """The dotted name of what an import brings in."""
        if isinstance(node, ast.Import):
            return alias.name
        return f"{'.' * node.level}{node.module or ''}.{alias.name}"

    def dotted(self, node):
        """The dotted name, from an import on, that a name or attribute stands for, else ""."""
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return f"{base}.{node.attr}" if base else ""
        return self.names.get(node.id, "") if isinstance(node, ast.Name) else ""

    def value(self, node):
        """The constant that an expression is, or UNKNOWN."""
        if isinstance(node, ast.Name) and len(self.assigned[node.id]) == 1:
            node = self.assigned[node.id][0]
        return node.value if isinstance(node, ast.Constant) else UNKNOWN

    def in_use(self):
        """Whether anything mentions the function around the node at hand; True outside of functions."""
        return not self.functions or self.functions[-1].name in self.mentioned

    def check_name(self, name, node):
        """What is imported or used by a dotted name."""
        if _within(name, *MODEL_ZOOS):
            self.note("no model zoo", node, name)
        if name.split(".")[-1] in LOADERS:
            self.note("no pre-trained weights", node, name)
        if _within(name, "sklearn") and name != "sklearn" and not _within(name, "sklearn.metrics"):
            self.note("scikit-learn", node, name)

    def visit_Import(self, node):
        for alias in node.names:
            name = self.imported(node, alias)
            top = name.split(".")[0]
            self.check_name(name, node)
            known = {*PACKAGES, *sys.builtin_module_names, *getattr(sys, "stdlib_module_names", ())}  # Python 3.10
            old = top and not hasattr(sys, "stdlib_module_names")
            if top not in known and not (old and importlib.util.find_spec(top)):
                self.note("imports", node, top or name, "warn")

    visit_ImportFrom = visit_Import

    def visit_Name(self, node):
        self.check_name(self.dotted(node), node)

    def visit_Attribute(self, node):
        name = self.dotted(node)
        self.check_name(name, node)
        if not name and node.attr in LOADERS:
            self.note("no pre-trained weights", node, node.attr)
        if not name:
            self.generic_visit(node)

    def visit_FunctionDef(self, node):
        names = _identifiers(node)
        if (re.search("predict|classify", node.name)
                and any(re.search("pdf|gauss|densit|mahalanobis", name) for name in names)
                and not any(re.search("weight|mix|coef|phi|prior|alpha|resp|posterior|(^|_)pis?(_|$)", name.lower())
                            for name in names)):
            self.note("mixing weights", node, f"{node.name}()", "warn")
        self.functions.append(node)
        self.generic_visit(node)
        self.functions.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Call(self, node):
        name, method = self.dotted(node.func), getattr(node.func, "attr", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in ("torch.manual_seed", "torch.random.manual_seed"):
            self.check_seed(node, [*node.args, *keywords.values()])
        elif name in ("matplotlib.pyplot.show", "pylab.show", "matplotlib.pylab.show"):
            self.note("no plt.show()", node, "plt.show()", "fail" if self.in_use() else "warn")
        elif name == "torch.load" and len(node.args) < 2 and not {"map_location", None} & set(keywords):
            self.note("map_location", node, "torch.load without map_location", "warn")
        elif name == "importlib.import_module" or getattr(node.func, "id", "") in ("__import__", "exec", "eval"):
            self.note("imports", node, f"{name or node.func.id}()", "warn")  # what it brings in, no tree shows
        self.check_weights(name, keywords)
        self.check_latents(node, method)
        by_name = any(str(self.value(argument)).startswith("cuda") for argument in (*node.args, *keywords.values()))
        if (method == "cuda" or method in ("to", "device") and by_name) and not self.mentioned & {
                "is_available", "device_count"}:
            self.note("device", node, ast.unparse(node), "warn")
        self.generic_visit(node)

    def check_seed(self, node, given):
        value = self.value(given[0]) if given else UNKNOWN
        if not self.in_use():
            self.note(SEED, node, f"torch.manual_seed stands in {self.functions[-1].name}(), which nothing calls")
        elif value is UNKNOWN:
            self.note(SEED, node, "cannot tell whether torch.manual_seed is given 0", "warn")
        elif value == 0:
            self.note(SEED, node, "", "pass")
        else:
            self.note(SEED, node, f"torch.manual_seed is given {value!r}, not 0")

    def check_weights(self, name, keywords):
        for key, node in keywords.items():
            value = self.value(node)
            if key == "pretrained" and value is not False and value is not None:
                self.note("no pre-trained weights", node, f"pretrained={ast.unparse(node)}",
                          "warn" if value is UNKNOWN else "fail")
            elif key in ("weights", "weights_backbone") and (
                    isinstance(value, str) or value is UNKNOWN and _within(name, *MODEL_ZOOS)):
                self.note("no pre-trained weights", node, f"{key}={ast.unparse(node)}")

    def check_latents(self, node, method):
        around = self.functions[-1] if self.functions else node
        names = _identifiers(around)
        if (re.match("_?(reparam|sample_z|sample_latent)", method) and names & {"no_grad", "inference_mode"}
                and "backward" not in names):  # the reparameterisation belongs to training
            self.note("means, not samples", node, f"{method}() in {getattr(around, 'name', 'the script')}()", "warn")
        if method in ("fit", "fit_predict") and node.args and any(
                re.search("(^|_)val(id|idation)?(_|$)", name.lower()) for name in _identifiers(node.args[0])):
            self.note("mixture's images", node, ast.unparse(node), "warn")


def _row(part, rule, before, visitor):
    """The Row of one rule: the worst finding counts, of seeds the best."""
    found = visitor.found[rule]
    if rule == SEED:
        if not found:
            unsure = "manual_seed" in visitor.mentioned
            return Row(part, rule, "warn" if unsure else "fail", "", "cannot tell whether torch.manual_seed is called "
                       "with 0" if unsure else "torch.manual_seed(0) is never called")
        found = [max(found, key=lambda one: ("fail", "warn", "pass").index(one[0]))]
    status = next((status for status in ("fail", "warn") if any(one[0] == status for one in found)), "pass")
    lines = list(dict.fromkeys(f"line {line}: {what}" for kind, line, what in sorted(found) if kind == status))
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return Row(part, rule, status, "", before + ", ".join(lines[:3]) + more if status != "pass" else "")


def check_rules(part, source):
    """Rows of all rules for a script's source, bytes or text. `part` is "birds" or "digits"."""
    try:
        visitor = Visitor(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if getattr(error, "lineno", None) else ""
        return [Row(part, "syntax", "fail", "", f"{line}{getattr(error, 'msg', None) or error}")]
    rules = {**RULES, **(RULES_OF_DIGITS if part == "digits" else {})}
    return [Row(part, "syntax", "pass"), *(_row(part, rule, before, visitor) for rule, before in rules.items())]
