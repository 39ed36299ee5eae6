"""The program that runs inside the sandbox: limits itself, tells that it is ready, then runs untrusted code.

Sent as text to a bare interpreter (`python -c`), so it imports nothing of motet. Arguments: a descriptor to read the
job from, a descriptor for "ready filtered\\n" or "ready unfiltered\\n" and then, by mode, one line of JSON:

    {"mode": "script", "program": ...}                                   nothing: standard output is the result
    {"mode": "call", "program": ..., "function": "f", "args": [1]}       {"value": 2} or {"error": "ValueError: ..."}
    {"mode": "check", "program": ..., "function": "f", "test_code": "def check(candidate): ...", "token": "ab12"}
                                                                         {"token": "ab12"} or {"error": ...}

The program shares this process and can write the line itself: it can state a value, never a verdict.
"""

import builtins
import ctypes
import json
import os
import resource
import sys
import types
from typing import Any

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
SIGKILL = 9
MAX_DEPTH = 50


def main() -> None:
    job_file, result = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(job_file, encoding="utf-8") as file:
        job = json.load(file)
    filtered = confine(job["limits"], bytes.fromhex(job["filter"]))
    os.write(result, b"ready filtered\n" if filtered else b"ready unfiltered\n")
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # module site, which defines them, is not loaded
    sys.argv[:] = ["solution.py"]
    if job["mode"] == "script":
        os.close(result)
        load(job["program"], "__main__")
        return
    try:
        answer = json.dumps(call(job) if job["mode"] == "call" else check(job))
    except BaseException as error:  # SystemExit and KeyboardInterrupt of the program are its failures too
        answer = json.dumps({"error": f"{type(error).__name__}: {error}"[:300]})
    data = answer.encode() + b"\n"
    while data:
        data = data[os.write(result, data) :]
    sys.stdout.flush()
    os._exit(0)  # threads of the program are not waited for


def confine(limits: dict[str, int], program: bytes) -> bool:
    """Resource limits, death with the parent, then the system call filter; False where the kernel refuses it."""
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu"], limits["cpu"] + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"], limits["file"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if not program or libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False

    class SockFprog(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    fprog = SockFprog(len(program) // 8, program)
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(fprog)) == 0)


def load(source: str, name: str) -> dict[str, Any]:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def call(job: dict[str, Any]) -> dict[str, Any]:
    function = find(load(job["program"], "solution"), job["function"])
    return {"value": plain(function(*job["args"]), 0)}


def check(job: dict[str, Any]) -> dict[str, Any]:
    token = job.pop("token")
    namespace = load(job["program"], "solution")
    candidate = find(namespace, job["function"])
    exec(compile(job["test_code"], "test.py", "exec", dont_inherit=True), namespace)
    namespace["check"](candidate)
    return {"token": token}


def find(namespace: dict[str, Any], name: str) -> Any:
    """A function of the program, or a method of its class `Solution`."""
    if name not in namespace and isinstance(namespace.get("Solution"), type):
        return getattr(namespace["Solution"](), name)
    if name not in namespace:
        raise NameError(f"the program defines no {name!r}")
    return namespace[name]


def plain(value: Any, depth: int) -> Any:
    """The value with exact JSON types; a subclass with methods of its own is refused."""
    if depth > MAX_DEPTH:
        raise TypeError("the result is nested too deeply")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [plain(item, depth + 1) for item in value]
    if type(value) is dict and all(type(key) in (str, int) for key in value):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    raise TypeError(f"the result holds a {type(value).__name__}, which is not plain data")


if __name__ == "__main__":
    main()
