"""One thread for arithmetic: tests run beside each other and on any machine."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before any use of a GPU

# The longest files, so that no process works on one of them alone at the end.
LONGEST = ("test_dvc.py", "test_dvc_verification.py", "test_jobs.py", "test_kill.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
