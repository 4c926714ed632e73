"""The course's rules, read from a script's syntax tree: names are followed through imports, aliases and assignments,
so that neither a comment nor a string is taken for code, and an alias does not hide anything."""
import ast
import builtins
import pkgutil
import re
import sys
import sysconfig

from handin.contract import Row

MODEL_ZOOS = ("torchvision.models", "timm", "torch.hub", "transformers", "pretrainedmodels", "efficientnet_pytorch",
              "huggingface_hub", "open_clip", "clip", "segmentation_models_pytorch", "tensorflow", "keras", "fastai",
              "tensorflow_hub", "mmpretrain", "mmcls", "torch.utils.model_zoo")
LOADERS = ("load_state_dict_from_url", "load_url", "from_pretrained")  # of weights, whatever they are attributes of
PACKAGES = ("torch", "torchvision", "numpy", "sklearn", "skimage", "matplotlib", "scipy", "PIL", "tqdm", "pandas")
ROUNDS = 8     # of names followed through names
BUDGET = 2000  # of nodes looked at for one constant
UNKNOWN = object()


def standard_library():
    """Names of the standard library's modules."""
    named = getattr(sys, "stdlib_module_names", None)  # since Python 3.10
    if named is None:
        folder = sysconfig.get_paths()["stdlib"]
        named = {module.name for module in pkgutil.iter_modules([folder, f"{folder}/lib-dynload"])}
    return frozenset(named) | frozenset(sys.builtin_module_names)


def _within(name, modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


class Names:
    """What the names of a syntax tree may stand for, wherever and in whichever order they are bound."""

    def __init__(self, tree):
        self.tree = tree
        self.modules, self.stars, self.imported = {}, [], []  # {name: {dotted}}, [module], [(dotted, line)]
        self.values = {}    # name, attribute, keyword or key -> nodes bound to it
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for node in ast.walk(tree):
            getattr(self, f"_see_{type(node).__name__}", lambda node: None)(node)
            if isinstance(node, ast.Call):
                self._see_call(node, functions)
        for _ in range(ROUNDS):
            before = sum(map(len, self.modules.values()))
            for name, nodes in self.values.items():
                found = {module for node in nodes if isinstance(node, (ast.Name, ast.Attribute, ast.Call))
                         for module in self.dotted(node) if module.count(".") < ROUNDS}
                if found:
                    self.modules.setdefault(name, set()).update(found)
            if sum(map(len, self.modules.values())) == before:
                break

    def _bind(self, name, node):
        self.values.setdefault(name, []).append(node)

    def _see_Import(self, node):
        for alias in node.names:
            self.modules.setdefault(alias.asname or alias.name.split(".")[0], set()).add(
                alias.name if alias.asname else alias.name.split(".")[0])
            self.imported.append((alias.name, node.lineno))

    def _see_ImportFrom(self, node):
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                self.stars.append(module)
                self.imported.append((module, node.lineno))
            else:
                self.modules.setdefault(alias.asname or alias.name, set()).add(f"{module}.{alias.name}")
                self.imported.append((f"{module}.{alias.name}", node.lineno))

    def _see_target(self, target, value):
        if isinstance(target, (ast.Tuple, ast.List)):
            same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
            for index, part in enumerate(target.elts):
                self._see_target(part, value.elts[index] if same else ast.Name("?", ast.Load()))
        elif isinstance(target, ast.Name):
            self._bind(target.id, value)
        elif isinstance(target, ast.Attribute):
            self._bind(target.attr, value)
        elif isinstance(target, ast.Subscript):
            for key in self.constants(target.slice) - {UNKNOWN}:
                self._bind(key, value)

    def _see_Assign(self, node):
        for target in node.targets:
            self._see_target(target, node.value)

    def _see_AnnAssign(self, node):
        if node.value is not None:
            self._see_target(node.target, node.value)

    _see_NamedExpr = _see_AnnAssign

    def _see_Dict(self, node):
        for key, value in zip(node.keys, node.values):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                self._bind(key.value, value)

    def _see_FunctionDef(self, node):
        arguments = node.args
        positional = [*getattr(arguments, "posonlyargs", []), *arguments.args]
        for argument, default in [*zip(reversed(positional), reversed(arguments.defaults)),
                                  *zip(arguments.kwonlyargs, arguments.kw_defaults)]:
            if default is not None:
                self._bind(argument.arg, default)

    _see_AsyncFunctionDef = _see_FunctionDef

    def _see_call(self, node, functions):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", None)
        if name in functions or name in ("dict", "Namespace", "SimpleNamespace"):
            for keyword in node.keywords:
                if keyword.arg:
                    self._bind(keyword.arg, keyword.value)
        if name in ("add_argument", "add_option"):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            flags = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            flag = next((flag for flag in flags if flag.startswith("--")), flags[0] if flags else "")
            dest = getattr(given.get("dest"), "value", None) or flag.lstrip("-").replace("-", "_")
            if "default" in given:
                self._bind(dest, given["default"])
        elif name in functions:
            function = functions[name]
            if isinstance(function, ast.ClassDef):
                function = next((part for part in function.body
                                 if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
            if function is not None:
                named = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
                for argument, value in zip(named, node.args):
                    self._bind(argument, value)

    def constants(self, node):
        """Set of the constants that an expression may be; UNKNOWN among them where it cannot be followed."""
        self.budget = BUDGET
        return self._constants(node, ROUNDS)

    def _constants(self, node, depth):
        self.budget -= 1
        if isinstance(node, ast.Constant):
            return {node.value}
        if depth == 0 or self.budget < 0:
            return {UNKNOWN}
        options = self._options(node, depth)
        if options:
            return set().union(*(self._constants(option, depth - 1) for option in options))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return {-value if isinstance(value, (int, float)) else UNKNOWN
                    for value in self._constants(node.operand, depth - 1)}
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = (self._constants(side, depth - 1) for side in (node.left, node.right))
            return {a + b if isinstance(a, str) and isinstance(b, str) else UNKNOWN for a in left for b in right}
        return {UNKNOWN}

    def _options(self, node, depth):
        """Nodes of which an expression takes the value of one; [] where that is not known."""
        if type(node).__name__ == "Index":  # Python 3.8 wraps subscripts
            return [node.value]
        if isinstance(node, ast.Name):
            return self.values.get(node.id, [])
        if isinstance(node, ast.Attribute):
            return self.values.get(node.attr, [])
        if isinstance(node, ast.Subscript):
            keys = self._constants(node.slice, depth - 1)
            return [value for key in keys if isinstance(key, str) for value in self.values.get(key, [])]
        if isinstance(node, ast.IfExp):
            return [node.body, node.orelse]
        if isinstance(node, ast.BoolOp):
            return node.values
        if isinstance(node, ast.Call):
            default = [keyword.value for keyword in node.keywords if keyword.arg == "default"]
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", None)
            if name == "int":
                return node.args[:1]
            if name in ("get", "getattr", "getenv"):  # by a key that is bound, or the default that the command leaves
                keys = [part.value for part in node.args[:-1] if isinstance(part, ast.Constant)]
                bound = [value for key in keys for value in self.values.get(key, [])]
                return bound or node.args[-1:]
            return default
        return []

    def dynamic_import(self, node):
        """Modules that a call imports by name; () when it does not."""
        if not isinstance(node, ast.Call) or not node.args:
            return ()
        function = self.dotted(node.func)
        if not function & {"importlib.import_module", "__import__", "builtins.__import__"}:
            return ()
        return {name for name in self.constants(node.args[0]) if isinstance(name, str)}

    def dotted(self, node):
        """Dotted names, from an imported module on, that an expression may stand for."""
        if isinstance(node, ast.Attribute):
            return {f"{name}.{node.attr}" for name in self.dotted(node.value)}
        if isinstance(node, ast.Name):
            if node.id in self.modules or node.id in self.values:
                return self.modules.get(node.id, set())
            if hasattr(builtins, node.id):
                return {node.id} if node.id == "__import__" else set()
            return {f"{module}.{node.id}" for module in self.stars}
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1:
                return {f"{name}.{part}" for name in self.dotted(node.args[0])
                        for part in self.constants(node.args[1]) if isinstance(part, str)}
            names = self.dynamic_import(node)
            return set(names) | {name.split(".")[0] for name in names}
        return set()

    def used(self):
        """(dotted name, line) of all that is imported, by statement or by name, and of what is reached through it."""
        found = set(self.imported)
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Attribute, ast.Name, ast.Call)):
                names = self.dynamic_import(node) if isinstance(node, ast.Call) else self.dotted(node)
                found |= {(name, node.lineno) for name in names}
        return sorted(found, key=lambda item: item[::-1])

    def calls(self, *names):
        """Calls of what one of the dotted names stands for."""
        calls = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))
        return [call for call in calls if self.dotted(call.func) & {*names}]

    def idle_function(self, node):
        """Name of the function around a node that nothing in the script refers to, or None."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                outer = self.parents.get(node)
                named = {part.id if isinstance(part, ast.Name) else part.attr for part in ast.walk(self.tree)
                         if isinstance(part, (ast.Name, ast.Attribute))}
                if node.name not in named and not node.decorator_list and not isinstance(outer, ast.ClassDef):
                    return node.name
        return None


def _lines(evidence, most=3):
    evidence = list(dict.fromkeys(evidence))
    more = f" and {len(evidence) - most} more" if len(evidence) > most else ""
    return ", ".join(f"line {line}: {what}" for what, line in evidence[:most]) + more


def _shortest(used):
    """Each line's shortest names alone: torchvision.models rather than what is reached through it as well."""
    return [(name, line) for name, line in used
            if not any(other == line and name.startswith(shorter + ".") for shorter, other in used)]


def _model_zoo(names):
    found = [(name, line) for name, line in names.used() if _within(name, MODEL_ZOOS)]
    return ("fail", _lines(_shortest(found))) if found else ("pass", "")


def _pretrained(names):
    found = []
    for node in ast.walk(names.tree):
        last = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        imported = [part.name for part in node.names] if isinstance(node, ast.ImportFrom) else []
        found += [(name, node.lineno) for name in (last, *imported) if name in LOADERS]
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg not in ("pretrained", "weights", "weights_backbone"):
                continue
            values = names.constants(keyword.value)
            if keyword.arg == "pretrained" and any(value is True or isinstance(value, str) for value in values):
                found.append((f"pretrained={ast_text(keyword.value)}", node.lineno))
            if keyword.arg != "pretrained" and _is_weights(keyword.value, values, names, node):
                found.append((f"{keyword.arg}={ast_text(keyword.value)}", node.lineno))
    return ("fail", _lines(found)) if found else ("pass", "")


def _is_weights(value, constants, names, call):
    """Whether the argument of `weights=` is a trained model's, not those of an average or a sampler."""
    if any(isinstance(part, str) for part in constants):
        return any(isinstance(part, str) and (part == "DEFAULT" or part.upper().startswith("IMAGENET"))
                   for part in constants) or any(_within(name, MODEL_ZOOS) for name in names.dotted(call.func))
    zoo = any(_within(name, MODEL_ZOOS) for name in names.dotted(call.func) | names.dotted(value))
    return zoo and constants != {None}


def ast_text(node):
    """The node as source text where this Python can write it, for a message."""
    text = ast.unparse(node) if hasattr(ast, "unparse") else getattr(node, "id", getattr(node, "value", "..."))
    return str(text)[:60]


def _scikit_learn(names):
    used = [(name, line) for name, line in names.used() if _within(name, ("sklearn",))]
    found = [(name, line) for name, line in used if name != "sklearn" and not _within(name, ("sklearn.metrics",))
             and not name.startswith("sklearn.__")]
    if found:
        return "fail", f"only sklearn.metrics is allowed here; {_lines(_shortest(found))}"
    return "pass", ""


def _seed(names):
    calls = names.calls("torch.manual_seed", "torch.random.manual_seed")
    if not calls:
        return "fail", "torch.manual_seed(0) is never called"
    faults = []
    for call in calls:
        given = call.args[0] if call.args else next((keyword.value for keyword in call.keywords), None)
        values = {UNKNOWN} if given is None else names.constants(given)
        idle = names.idle_function(call)
        if idle:
            faults.append(("fail", f"line {call.lineno}: torch.manual_seed stands in {idle}(), which nothing calls"))
        elif 0 in values and values <= {0, UNKNOWN}:
            return "pass", ""
        elif values & {0, UNKNOWN}:
            faults.append(("warn", f"line {call.lineno}: cannot tell whether torch.manual_seed({ast_text(given)}) "
                                   "is given 0"))
        else:
            shown = ", ".join(sorted(map(repr, values)))
            faults.append(("fail", f"line {call.lineno}: torch.manual_seed is given {shown}, not 0"))
    return max(faults)  # "warn" comes after "fail": what may be right is not called wrong


def _show(names):
    calls = names.calls("matplotlib.pyplot.show", "pylab.show", "matplotlib.pylab.show")
    live = [call for call in calls if not names.idle_function(call)]
    if live:
        return "fail", (f"{_lines([('plt.show()', call.lineno) for call in live])}: where there is a display it waits "
                        "until someone closes the window")
    return ("warn", "plt.show() in a function that nothing calls") if calls else ("pass", "")


def _map_location(names):
    found = [("torch.load without map_location", call.lineno) for call in names.calls("torch.load")
             if len(call.args) < 2 and not {"map_location", None} & {keyword.arg for keyword in call.keywords}]
    return ("warn", f"{_lines(found)}: a model saved on a GPU will not load without one") if found else ("pass", "")


def _imports(names):
    known = standard_library() | set(PACKAGES)
    found = [(name.split(".")[0] or name, line) for name, line in names.imported if name.split(".")[0] not in known]
    found += [(name, node.lineno) for node in ast.walk(names.tree) for name in names.dynamic_import(node)
              if name.split(".")[0] not in known]
    found += [(f"{node.func.id}()", node.lineno) for node in ast.walk(names.tree) if isinstance(node, ast.Call)
              and isinstance(node.func, ast.Name) and node.func.id in {"exec", "eval"} - names.values.keys()]
    return ("warn", f"outside what the course provides: {_lines(found)}") if found else ("pass", "")


def _device(names):
    """cuda by name where nothing asks whether it is there."""
    asked = any(isinstance(node, ast.Attribute) and node.attr in ("is_available", "device_count")
                for node in ast.walk(names.tree))
    found = []
    for node in ast.walk(names.tree):
        if isinstance(node, ast.Call):
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            given = [part.value for part in [*node.args, *(keyword.value for keyword in node.keywords)]
                     if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if method == "cuda" or (method in ("to", "device") and any(text.startswith("cuda") for text in given)):
                found.append((ast_text(node), node.lineno))
    if found and not asked:
        return "warn", f"a GPU is assumed, torch.cuda.is_available() never asked: {_lines(found)}"
    return "pass", ""


def _functions(names):
    return [node for node in ast.walk(names.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def _identifiers(node):
    return {part.id if isinstance(part, ast.Name) else part.attr for part in ast.walk(node)
            if isinstance(part, (ast.Name, ast.Attribute))}


def _sampled_latents(names):
    """The reparameterisation belongs to training; what is only looked at, without gradients, is the mean."""
    found = []
    for function in _functions(names):
        used = _identifiers(function)
        if (used & {"no_grad", "inference_mode"} and not used & {"backward", "step"}
                and re.search("latent|mean|encod|extract|embed|feature|predict|recon|test|classif", function.name)):
            found += [(f"{node.func.attr}() in {function.name}()", node.lineno) for node in ast.walk(function)
                      if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                      and re.fullmatch(r"_?(reparam\w*|sample_z|sample_latent\w*)", node.func.attr)]
    return ("warn", "a latent drawn at random where the mixture and the tests want the encoder's mean: "
                    f"{_lines(found)}") if found else ("pass", "")


def _mixing_weights(names):
    """A prediction from the components' densities alone."""
    found = []
    for function in _functions(names):
        used = _identifiers(function)
        if (re.search("predict|classify", function.name)
                and any(re.search("pdf|^exp$|gauss|densit|likelihood|mahalanobis", name) for name in used)
                and not any(re.search("weight|mix|coef|phi|prior|alpha|resp|e_?step|posterior|^predict_|(^|_)pis?(_|$)",
                                      name.lower()) for name in used)):
            found.append((f"{function.name}()", function.lineno))
    return ("warn", f"densities compared without the mixing weights: {_lines(found)}") if found else ("pass", "")


def _few_images(names):
    """A mixture fitted to the labelled images."""
    found = [(ast_text(node), node.lineno) for node in ast.walk(names.tree) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Attribute) and node.func.attr in ("fit", "fit_predict") and node.args
             and any(re.search("(^|_)val(id|idation)?(_|$)", name.lower()) for name in _identifiers(node.args[0]))]
    return ("warn", "the mixture is fitted to the labelled images, not to the training ones: "
                    f"{_lines(found)}") if found else ("pass", "")


def _shared_transform(names):
    """Photos split after one augmenting transform was given to all of them."""
    splits = names.calls("torch.utils.data.random_split", "torch.utils.data.dataset.random_split")
    random = [name for name, _ in names.used() if re.search(r"transforms\.(v2\.)?(Random|ColorJitter|AutoAug)", name)]
    folders = names.calls("torchvision.datasets.ImageFolder", "torchvision.datasets.folder.ImageFolder")
    replaced = [target for node in ast.walk(names.tree) if isinstance(node, ast.Assign) for target in node.targets
                if ast_text(target).endswith("dataset.transform")]  # of a subset: subset.dataset.transform = ...
    if splits and random and len(folders) <= 2 and not replaced:
        return "warn", ("validation photos are augmented like those of training: "
                        f"{_lines([('random_split', call.lineno) for call in splits])}")
    return "pass", ""


RULES = {"no model zoo": _model_zoo, "no pre-trained weights": _pretrained, "scikit-learn": _scikit_learn,
         "torch.manual_seed(0)": _seed, "no plt.show()": _show, "map_location": _map_location, "imports": _imports,
         "device": _device, "means, not samples": _sampled_latents, "mixing weights": _mixing_weights,
         "mixture's images": _few_images, "validation transform": _shared_transform}
OF_ONE_PART = {"scikit-learn": "digits", "means, not samples": "digits", "mixing weights": "digits",
               "mixture's images": "digits", "validation transform": "birds"}


def check_rules(part, source):
    """Rows of all rules for a script's source, bytes or text. `part` is "birds" or "digits"; scikit-learn is restricted
    in the latter alone."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if getattr(error, "lineno", None) else ""
        return [Row(part, "syntax", "fail", "", f"{line}{getattr(error, 'msg', None) or error}")]
    names = Names(tree)
    rows = [Row(part, "syntax", "pass")]
    for check, rule in RULES.items():
        if OF_ONE_PART.get(check, part) == part:
            try:
                status, detail = rule(names)
            except RecursionError:
                status, detail = "warn", "expressions too deep to follow"
            rows.append(Row(part, check, status, "", detail))
    return rows
