"""What a copy of a launcher runs first: it notes which sources and .pyc files Python opens, and the modules of the package."""

import posix
import sys

opened: "list[str]" = []
real_exit = posix._exit


def watch(event: str, arguments: "tuple[object, ...]") -> None:
    path = arguments[0] if event == "open" else None
    if isinstance(path, str) and path.endswith((".py", ".pyc")):
        opened.append(path)


def shown(module: object) -> "tuple[object, ...]":
    """The attributes that the import system sets, and where the text of a function is said to be."""
    spec = module.__spec__  # type: ignore[attr-defined]
    texts = [value.__code__.co_filename for value in vars(module).values() if hasattr(value, "__code__")]
    names = "__name__", "__file__", "__package__", "__path__"
    attributes = [getattr(module, name, None) for name in names]
    source = spec.loader.get_source(spec.name)
    same = spec.loader is module.__loader__  # type: ignore[attr-defined]
    found = spec.name, spec.origin, spec.cached, spec.has_location, spec.parent, spec.submodule_search_locations
    return (*attributes, *found, same, len(source), sorted({text.rpartition("/")[2] for text in texts}))


def report(status: int) -> None:
    noted = list(opened)
    modules = {name: shown(module) for name, module in list(sys.modules.items()) if name.startswith("cni_py")}
    fd = posix.open(posix.environ[b"REPORT"], posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC)
    posix.write(fd, repr({"opened": noted, "modules": modules}).encode())
    real_exit(status)


posix._exit = report  # type: ignore[assignment]  # run.main() ends with it
sys.addaudithook(watch)
