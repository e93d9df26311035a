"""The shape of the package: what it shows, what it imports, and how far its modules grow."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import mlflow_ckpt

pytestmark = pytest.mark.pure

ROOT = Path(mlflow_ckpt.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Every absolute module a file imports, inside functions and type checks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


def importers(package: str) -> set[str]:
    """Modules of ours that import `package` or something in it."""
    return {
        module
        for module, path in MODULES.items()
        if any(f"{name}.".startswith(f"{package}.") for name in imported(path))
    }


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        # MLflow asks a plugin for a subclass of its own.
        pytest.param("mlflow", ("store/", "artifact_repo.py"), id="mlflow-in-the-store"),
        pytest.param("keras.src", ("keras_internals/",), id="keras-private-in-one-package"),
        pytest.param(
            "tensorflow", ("exporting.py", "keras_internals/"), id="tensorflow-in-two-places"
        ),
        pytest.param("pickle", (), id="no-pickle"),
    ],
)
def test_one_module_per_outside_system(package: str, allowed: tuple[str, ...]) -> None:
    assert {module for module in importers(package) if not module.startswith(allowed)} == set()


@pytest.mark.parametrize(
    "module",
    [
        "errors.py",
        "address.py",
        "selector.py",
        "policy.py",
        "manifest.py",
        "record.py",
        "card_content.py",
        "below.py",
        "digests.py",
        "manifest_fields.py",
        "manifest_paths.py",
        "members.py",
        "format_version.py",
        "plain_json.py",
        "zipped.py",
    ],
)
def test_the_pure_modules_know_no_framework_and_no_clock(module: str) -> None:
    outside = {"keras", "mlflow", "tensorflow", "h5py", "pandas", "numpy", "time", "datetime"}
    assert {name.partition(".")[0] for name in imported(MODULES[module])} & outside == set()


def test_imports_only_go_down() -> None:
    levels = [
        {"errors"},
        {"finding", "tidy"},
        {
            "below",
            "contrast",
            "digests",
            "format_version",
            "hdf5_types",
            "manifest_fields",
            "manifest_paths",
            "members",
            "own_mark",
            "plain_json",
            "tensor_names",
            "weight_change",
        },
        {"config_change", "hdf5_claims"},
        {"hdf5_attributes"},
        {"card_content", "hdf5", "state_schema", "zipped"},
        {
            "selector",
            "policy",
            "manifest",
            "record",
            "progress",
            "registry_names",
            "resume_option",
            "say",
            "naming",
        },
        {"address", "plain", "plain_objects", "attributes"},
        {"formats"},
        {"mapped"},
        {"stored_tensors"},
        {"state_facts", "weight_pairs"},
        {"comparison"},
        {"optimizer_change"},
        {"keras_internals", "stream"},
        {
            "archive",
            "layout",
            "fingerprint",
            "host_copy",
            "safe_config",
            "structure",
            "training_state",
        },
        {"sources"},
        {"allowance"},
        {"template", "state_mark", "rehydrate", "guard", "slimming"},
        {"captured", "keras_callbacks"},
        {"snapshot", "callback_state"},
        {"store", "fit_state"},
        {"writer", "curves"},
        {"across"},
        {"resolver", "retention"},
        {"fetched", "listing"},
        {"located"},
        {"artifact_repo"},
        {"loader", "saving", "exporting", "report", "forking", "warm_starting"},
        {"differing", "explaining", "pruning", "orphans", "verifying", "slim_copy"},
        {"diff_report", "keep_report", "trust_report", "served"},
        {"registering"},
        {"software", "spool_check", "server_check", "artifact_check"},
        {"doctoring"},
        {"recall"},
        {"launch"},
        {"relaunching"},
        {"resume_point"},
        {"resume"},
        {"restore"},
        {"exactness"},
        {"resumption"},
        {"neighbours"},
        {"session"},
        {"tail"},
        {"callback", "probe"},
        {"cli"},
    ]
    height = {module: n for n, level in enumerate(levels) for module in level}
    upward = [
        (module, name)
        for module, path in MODULES.items()
        if (own := module.partition("/")[0].removesuffix(".py")) in height
        for name in imported(path)
        if name.startswith("mlflow_ckpt.")
        if height.get(name.split(".")[1], 0) > height[own]
    ]
    assert upward == []


@pytest.mark.parametrize("module", MODULES)
def test_no_module_runs_away(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 330


def test_all_is_sorted_and_each_name_is_there() -> None:
    assert mlflow_ckpt.__all__ == sorted(mlflow_ckpt.__all__)
    assert len(set(mlflow_ckpt.__all__)) == len(mlflow_ckpt.__all__)
    for name in mlflow_ckpt.__all__:
        assert getattr(mlflow_ckpt, name) is not None
        assert name in dir(mlflow_ckpt)
    assert set(mlflow_ckpt.__all__) == {*mlflow_ckpt._HOMES, "__version__"}


def test_the_names_for_type_checkers_are_the_names_for_users() -> None:
    tree = ast.parse(MODULES["__init__.py"].read_text(encoding="utf-8"))
    (block,) = (
        n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    )
    typed = {
        alias.name: str(node.module).rpartition(".")[2]
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == mlflow_ckpt._HOMES


def test_no_module_hides_behind_a_public_name() -> None:
    stems = {Path(module).stem for module in MODULES} - {"__init__"}
    assert stems & set(mlflow_ckpt.__all__) == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'mlflow_ckpt' has no attribute 'nothing'"):
        mlflow_ckpt.nothing  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert mlflow_ckpt.__version__ == version("mlflow-ckpt")


def test_every_all_in_the_package_is_sorted() -> None:
    for module in MODULES:
        name = "mlflow_ckpt." + module.removesuffix(".py").replace("/", ".")
        if not name.endswith("__main__"):
            listed = getattr(importlib.import_module(name.removesuffix(".__init__")), "__all__", [])
            assert listed == sorted(listed), name


def test_importing_the_package_imports_no_framework() -> None:
    code = (
        "import sys, mlflow_ckpt, mlflow_ckpt.errors, mlflow_ckpt.selector, mlflow_ckpt.policy\n"
        "heavy = {'keras', 'mlflow', 'pandas', 'tensorflow', 'numpy', 'h5py'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
