"""No file that Emendo reads can run code: held over the source itself, because one call is enough."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import emendo
from tests.every import every

SOURCE = Path(emendo.__file__).parent
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "runpy",
    "code",
}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.hub.load", "os.system", "os.popen"}
CALLS |= {"numpy.load", "np.load", "pandas.read_pickle", "pd.read_pickle", "torch.package.PackageImporter"}
YAML = {"load", "safe_dump", "SafeLoader", "YAMLError", "AliasEvent", "Node", "MappingNode"}
"""What may be used of yaml; its other loaders make Python objects."""

OPTIONS = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True, "shell": False}
"""Values that these options may have, wherever they are given."""


def findings(text: str) -> Iterator[str]:
    """What in a module could run code from a file."""
    tree = ast.parse(text)
    safe = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        yield from (f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES)
        yield from (f"line {node.lineno}: import {name}" for name in names if name in CALLS or name.startswith("yaml."))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml" and node.attr not in YAML:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load":
            loaders = [ast.unparse(given.value) for given in node.keywords if given.arg == "Loader"]
            if len(loaders) != 1 or loaders[0] not in {"yaml.SafeLoader", *safe}:
                yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) in CALLS:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        pairs: list[tuple[object, ast.expr]] = []
        if isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            pairs = list(zip(keys, node.values, strict=True))
        for name, value in pairs:
            if name in OPTIONS and not (isinstance(value, ast.Constant) and value.value is OPTIONS[name]):
                yield f"line {node.lineno}: {name}={ast.unparse(value)}"


def loads(text: str) -> Iterator[ast.Call]:
    """Calls of transformers' `from_pretrained` on its Auto classes."""
    for node in ast.walk(ast.parse(text)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name.lower().startswith("auto") and name.endswith(".from_pretrained"):
            yield node


def test_nothing_reads_pickles_or_runs_code_from_files() -> None:
    found = {
        str(path.relative_to(SOURCE)): list(findings(path.read_text(encoding="utf-8"))) for path in SOURCE.rglob("*.py")
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_every_model_is_loaded_without_remote_code() -> None:
    """Left out, the option makes transformers ask on the terminal."""
    files = ("loading.py", "tokenizer_files.py")
    calls = [call for file in files for call in loads((SOURCE / "models" / file).read_text(encoding="utf-8"))]
    assert len(calls) == 6
    for call in calls:
        named = {keyword.arg for keyword in call.keywords}
        assert "trust_remote_code" in named or ast.unparse(call.keywords[0]) == "**where", ast.unparse(call)
    others = [path for path in SOURCE.rglob("*.py") if path.name not in files]
    assert not [path for path in others if list(loads(path.read_text(encoding="utf-8")))]


@every(
    "line",
    [
        "import pickle",
        "from pickle import UnpicklingError",
        "import yaml.loader",
        "from yaml import load",
        "yaml.unsafe_load('f')",
        "yaml.load('f', yaml.SafeLoader)",
        "yaml.load('f', Loader=yaml.Loader)",
        "class Own(yaml.FullLoader): pass",
        "from torch import load",
        "x = torch.load('f')",
        "f = torch.load",
        "eval('1')",
        "np.load('f')",
        "g(trust_remote_code=True)",
        "g(trust_remote_code=flag)",
        "o = {'trust_remote_code': True}",
        "subprocess.run('ls', shell=True)",
        "g(weights_only=False)",
    ],
)
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert list(findings(line))
