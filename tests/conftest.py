"""One thread for arithmetic: tests run beside each other and on any machine."""

import os
import signal

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before any use of a GPU
# a shell ignores Ctrl-C for what it starts in the background, and so would all that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

# The longest files, so that no process works on one of them alone at the end.
LONGEST = ("test_dvc.py", "test_dvc_verification.py", "test_jobs.py", "test_kill.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _cuda_is_there():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _cuda_is_there():
    import torch  # after OMP_NUM_THREADS is set, and not for files that go without

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _environment_comes_back():
    """What a test, or the code in it, sets in the environment is not the next one's."""
    before = dict(os.environ)
    yield
    for name in {*before, *os.environ} - {"PYTEST_CURRENT_TEST"}:
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]
