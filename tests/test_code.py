"""What the code may not do with what it is given: run it.

One class reads pickles, of arrays: ``models.weights._PlainUnpickler``, which calls nothing that a
pickle names; ``test_hostile`` tries it.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("pipeline", "benchmarks", "scripts")
    for path in ROOT.glob(f"{folder}/**/*.py")
)
NAMED = {"eval", "exec", "compile", "__import__"}
CALLED = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
CALLED |= {"subprocess.getoutput", "subprocess.getstatusoutput", "torch.jit.load"}
UNPICKLING = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
SHELLS = {"sh", "bash", "dash", "zsh", "cmd"}


def offences(tree: ast.AST) -> list[str]:
    """Imports and calls by which input could be executed, each with its line."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import | ast.ImportFrom) and _imports(node))
        or (isinstance(node, ast.Call) and _calls(node))
    ]


def _imports(node: ast.Import | ast.ImportFrom) -> bool:
    named = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return node.module in UNPICKLING or any(f"{node.module}.{name}" in CALLED for name in named)
    return any(alias.name in UNPICKLING and alias.asname for alias in node.names)


def _calls(node: ast.Call) -> bool:
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    return (
        name in NAMED | CALLED
        or (name.startswith("builtins.") and last in NAMED)
        or name.partition(".")[0] in UNPICKLING
        or last in {"Unpickler", "read_pickle", "create_subprocess_shell"}
        or (name == "torch.load" and given.get("weights_only") != "True")
        or (last == "YAML" and given.get("typ", "'rt'") == "'unsafe'")
        or (name in ("np.load", "numpy.load") and len(node.args) > 2)
        or given.get("allow_pickle", "False") != "False"
        or given.get("shell", "False") != "False"
        or given.get("weights_only", "True") != "True"
        or any(_starts_a_shell(argument) for argument in node.args)
    )


def _starts_a_shell(argument: ast.expr) -> bool:
    words = argument.elts if isinstance(argument, ast.List | ast.Tuple) else []
    texts = [word.value for word in words if isinstance(word, ast.Constant)]
    return bool(texts) and Path(str(texts[0])).name in SHELLS and "-c" in texts


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)", "exec(text)", "pickle.load(file)", "pickle.loads(text)", "os.system(text)",
        "pickle.Unpickler(file).load()", "torch.load(path)", "torch.load(path, weights_only=safe)",
        "subprocess.run(text, shell=True)", "Popen(text, shell=yes)", "yaml.load(text)",
        "YAML(typ='unsafe')", "np.load(path, allow_pickle=True)", "joblib.load(path)",
        "hub.load_state_dict(url, weights_only=False)", "from pickle import load",
        "import pickle as p", "pd.read_pickle(path)", "builtins.eval(text)",
        "from os import system", "np.load(path, None, True)", "NpzFile(path, allow_pickle=True)",
        "asyncio.create_subprocess_shell(text)", "subprocess.run(['sh', '-c', text])",
    ],
)  # fmt: skip
def test_what_executes_input_is_recognised(code):
    assert offences(ast.parse(code))


@pytest.mark.parametrize(
    "code", ["torch.load(path, weights_only=True)", "subprocess.run(['ls'])", "YAML(typ='rt')",
             "np.load(path)", "model.eval()", "re.compile(text)", "json.loads(text)"],
)  # fmt: skip
def test_what_is_harmless_is_not(code):
    assert offences(ast.parse(code)) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_executes_input(file):
    assert offences(ast.parse(file.read_text(encoding="utf-8"))) == []
