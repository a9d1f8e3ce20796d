"""Skip these tests unless the extra `serve` is installed, which `dev` includes."""

from importlib.util import find_spec

NEEDED = ("fastapi", "uvicorn", "multipart", "prometheus_client", "greenlet", "httpx")
collect_ignore_glob = ["test_*.py"] if any(find_spec(name) is None for name in NEEDED) else []
