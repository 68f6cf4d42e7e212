#!/bin/sh
# huggingface_hub 2.4.0 speaks through httpx2: a hub that does not answer raises httpx2.ConnectError,
# which is neither an OSError nor an error of httpx, although httpx may be installed beside it. Code
# that catches httpx.TransportError (right for 1.x) or OSError lets it through.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet huggingface_hub==2.4.0 httpx==0.28.1
HF_ENDPOINT=http://127.0.0.1:9 "$folder/env/bin/python" - <<'PYTHON'
import httpx
import huggingface_hub
from huggingface_hub import HfApi

try:
    HfApi().model_info("some/model")
except Exception as error:
    found = error
kind = type(found)
print("huggingface_hub", huggingface_hub.__version__, "raises", f"{kind.__module__}.{kind.__name__}")
print("names:", ", ".join(k.__name__ for k in kind.__mro__))
print("OSError:", isinstance(found, OSError), " httpx.TransportError:", isinstance(found, httpx.TransportError))
assert kind.__module__.partition(".")[0] == "httpx2", kind
assert not isinstance(found, (OSError, httpx.TransportError))
assert any(k.__name__ == "TransportError" for k in kind.__mro__)
PYTHON
echo "as described"
