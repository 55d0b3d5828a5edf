"""Only what the user trusts is imported, and only what is its own is handed on."""

import sys
from types import ModuleType

import pytest

from finetune.errors import FinetuneError, TrustError
from finetune.importing import call_trusted, import_trusted, package_path, require
from finetune.trust import check_trust

KEY = ("model", "layers", 0)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `my_pkg` on the path, and a stranger `my_pkg_2` whose name begins alike."""
    inner = tmp_path / "my_pkg" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "my_pkg" / "__init__.py").write_text(
        "import os\nfrom os import popen, system\nimport functools, json, types\n"
        "def make(): return 'made'\n"
        "class Net:\n"
        "    @classmethod\n"
        "    def build(cls): return cls()\n"
        "    _hidden = make\n"
        "    def method(self): return 'method'\n"
        "    @staticmethod\n"
        "    def free(): return 'free'\n"
        "    system = staticmethod(system)\n"
        "@functools.wraps(system)\n"
        "def disguised(): ...\n"
        "disguised.__module__ = __name__\n"
        "def copied(): ...\n"
        "copied = types.FunctionType(popen.__code__, popen.__globals__)\n"
        "copied.__module__ = __name__\n"
        "bound_copy = types.MethodType(copied, 'true')\n"
        "ready = functools.partial(os.system, 'true')\n"
        "nested = functools.partial(functools.partial(os.system), 'true')\n"
        "class Ready(functools.partial): ...\n"
        "of_own_class = Ready(os.system, 'true')\n"
        "bound = types.MethodType(system, 'true')\n"
        "dumps = json.JSONEncoder().encode\n"
        "cached = functools.lru_cache(system)\n"
        "class Endless:\n"
        "    __module__ = 'my_pkg'\n"
        "    def __call__(self): ...\n"
        "    @property\n"
        "    def __wrapped__(self): return Endless()\n"
        "endless = Endless()\n"
        "class Child(json.JSONDecoder):\n"
        "    tools = os\n"
        "own_partial = functools.partial(make)\n"
        "own_cached = functools.lru_cache(make)\n"
        "own_bound = Net().method\n"
        "number = 3\n"
    )
    (inner / "__init__.py").write_text("def make(): return 'inner'\n")
    (inner / "file.txt").write_text("text")
    (tmp_path / "my_pkg" / "broken.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "my_pkg_2.py").write_text("def make(): ...\n")
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "my_pkg" / "link").symlink_to(tmp_path / "outside.txt")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "my_pkg"
    for name in [name for name in sys.modules if name.startswith("my_pkg")]:
        del sys.modules[name]


def test_an_untrusted_package_is_refused_before_anything_of_it_is_imported(package):
    with pytest.raises(TrustError, match="which is not trusted") as caught:
        import_trusted("my_pkg.inner:make", [], key=KEY)
    assert caught.value.key == (*KEY, "path")
    assert "--trust my_pkg" in caught.value.hint
    assert not {"my_pkg", "my_pkg.inner"} & sys.modules.keys()


def test_a_name_that_only_begins_like_a_trusted_one_is_refused(package):
    with pytest.raises(TrustError):
        import_trusted("my_pkg_2:make", ["my_pkg"], key=KEY)
    assert "my_pkg_2" not in sys.modules


def test_trust_in_a_submodule_does_not_reach_the_rest_of_its_package(package):
    assert import_trusted("my_pkg.inner:make", ["my_pkg.inner"], key=KEY)() == "inner"
    with pytest.raises(TrustError):
        import_trusted("my_pkg:make", ["my_pkg.inner"], key=KEY)


def test_functions_classes_and_their_methods_are_found(package):
    assert import_trusted("my_pkg:make", ["my_pkg"], key=KEY)() == "made"
    assert import_trusted("my_pkg.inner:make", ["my_pkg"], key=KEY)() == "inner"
    net = import_trusted("my_pkg:Net", ["my_pkg"], key=KEY)
    assert isinstance(import_trusted("my_pkg:Net.build", ["my_pkg"], key=KEY)(), net)


@pytest.mark.parametrize(
    "path",
    [
        "my_pkg:system",
        "my_pkg:Net.system",
        "my_pkg:disguised",
        "my_pkg:os.system",
        "my_pkg:functools.partial",
        "my_pkg:number",
        "my_pkg:os",
        "my_pkg:copied",
        "my_pkg:bound_copy",
        "my_pkg:ready",
        "my_pkg:nested",
        "my_pkg:of_own_class",
        "my_pkg:bound",
        "my_pkg:dumps",
        "my_pkg:cached",
        "my_pkg:endless",
        "my_pkg:Child.decode",
        "my_pkg:Child.tools",
        "my_pkg:Child.tools.system",
        "my_pkg:json.loads",
    ],
)
def test_a_trusted_package_cannot_hand_on_what_is_not_its_own(package, path):
    with pytest.raises(TrustError):
        import_trusted(path, ["my_pkg"], key=KEY)


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("own_partial", "made"),
        ("own_cached", "made"),
        ("own_bound", "method"),
        ("Net.free", "free"),
    ],
)
def test_what_a_package_wraps_of_its_own_is_found(package, name, result):
    assert import_trusted(f"my_pkg:{name}", ["my_pkg"], key=KEY)() == result


@pytest.mark.parametrize("name", ["os.path.join", "Child.tools.system", "functools.partial"])
def test_no_module_is_walked_through(package, name):
    with pytest.raises(TrustError, match="walks through a module"):
        import_trusted(f"my_pkg:{name}", ["my_pkg"], key=KEY)


def test_a_function_that_a_library_decorates_is_still_the_package_s_own(package):
    (package / "nets.py").write_text(
        "import torch\n@torch.no_grad()\ndef make(): return torch.is_grad_enabled()\n"
    )
    assert import_trusted("my_pkg.nets:make", ["my_pkg"], key=KEY)() is False


def test_arguments_that_do_not_fit_are_told_without_a_call(package):
    with pytest.raises(FinetuneError, match="unexpected keyword argument 'x'") as caught:
        call_trusted("my_pkg:make", {"x": 1}, ["my_pkg"], key=KEY)
    assert caught.value.key == (*KEY, "args")
    assert call_trusted("my_pkg:make", {}, ["my_pkg"], key=KEY) == "made"


@pytest.mark.parametrize(
    "name", ["os", "builtins", "subprocess", "importlib.util", "posix", "pickle", "_io", "sys"]
)
def test_the_standard_library_cannot_be_trusted(name):
    with pytest.raises(TrustError, match="standard library, which no config may call"):
        check_trust([name])
    with pytest.raises(TrustError, match="standard library"):
        import_trusted(f"{name}:anything", ["my_pkg", name], key=KEY)


@pytest.mark.parametrize(
    "name", ["", ".", "my_pkg.", ".inner", "my pkg", "my-pkg", "*", "my_pkg.*", "a:b", "../x", "if"]
)
def test_only_the_name_of_a_package_can_be_trusted(name):
    with pytest.raises(TrustError, match="needs the name of a package"):
        check_trust(["my_pkg", name])


def test_a_single_name_instead_of_a_list_is_not_read_letter_by_letter():
    with pytest.raises(TrustError, match="needs a list of packages"):
        check_trust("my_pkg")


@pytest.mark.parametrize("path", ["torch.os:system", "torch:os.system", "torch.serialization:os"])
def test_trusting_torch_does_not_trust_what_torch_imports(path):
    with pytest.raises(FinetuneError):
        import_trusted(path, ["torch"], key=KEY)


@pytest.mark.parametrize("path", ["os:system", "builtins:eval", "subprocess:run"])
def test_the_standard_library_is_not_trusted_of_itself(path):
    with pytest.raises(TrustError):
        import_trusted(path, ["my_pkg"], key=KEY)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_pkg", "needs the form 'package.module:name'"),
        ("my_pkg:", "needs the form 'package.module:name'"),
        ("my_pkg:none", "no public name 'none'"),
        ("my_pkg:Net._hidden", "no public name '_hidden'"),
        ("my_pkg:make.__globals__", "no public name '__globals__'"),
        ("my_pkg:Net.", "no public name ''"),
        ("my_pkg.none:make", "no module named 'my_pkg.none'"),
        ("my_pkg.:make", "no module named"),
        ("my_pkg..inner:make", "no module named"),
    ],
)
def test_a_path_that_leads_nowhere_is_told_at_its_key(package, path, message):
    with pytest.raises(FinetuneError, match=message.replace(".", r"\.")) as caught:
        import_trusted(path, ["my_pkg"], key=KEY)
    assert caught.value.key == (*KEY, "path")


def test_a_relative_module_is_refused(package):
    with pytest.raises(TrustError):
        import_trusted(".inner:make", ["my_pkg"], key=KEY)


def test_a_module_that_fails_to_import_its_own_needs_keeps_its_traceback(package):
    """That is a fault in the user's code, which a short message would hide."""
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        import_trusted("my_pkg.broken:make", ["my_pkg"], key=KEY)


def test_a_package_path_is_resolved_without_importing_the_package(package):
    path = package_path("package:my_pkg/inner/file.txt", key=KEY)
    assert path.read_text() == "text"
    assert package_path("package:my_pkg", key=KEY) == package.resolve()
    assert "my_pkg" not in sys.modules


@pytest.mark.parametrize(
    "inner", ["../outside.txt", "inner/../../outside.txt", "link", "/etc/passwd", "inner/../.."]
)
def test_a_package_path_cannot_leave_the_package(package, inner):
    with pytest.raises(FinetuneError, match="leaves the package") as caught:
        package_path(f"package:my_pkg/{inner}", key=KEY)
    assert caught.value.key == KEY


@pytest.mark.parametrize(
    "text",
    [
        "package:no_such_package/x",
        "package:/x",
        "package:a.b/x",
        "package:../x",
        "package:sys/x",
        "package:without_a_place/x",
    ],
)
def test_a_package_that_is_not_there_is_told_so(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "without_a_place", ModuleType("without_a_place"))
    with pytest.raises(FinetuneError, match="no installed package"):
        package_path(text, key=KEY)


def test_other_text_is_a_path_of_its_own():
    assert str(package_path("data/file.csv", key=KEY)) == "data/file.csv"
    assert package_path("~/x", key=KEY).is_absolute()


def test_a_missing_optional_package_names_the_extra_that_has_it():
    with pytest.raises(FinetuneError, match="'no_such_package', which is not installed") as caught:
        require("no_such_package.inner", extra="vision")
    assert caught.value.hint == "pip install 'finetune[vision]'"
    assert require("json", extra="vision").__name__ == "json"
