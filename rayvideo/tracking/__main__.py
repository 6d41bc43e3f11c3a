"""`python -m rayvideo.tracking runs` makes the folder and prints the address of its database, for `mlflow` itself."""

import sys
from pathlib import Path

from rayvideo.errors import UserError
from rayvideo.paths import argument
from rayvideo.tracking.address import database_in

try:
    storage = Path(argument(sys.argv[1]))
    storage.mkdir(parents=True, exist_ok=True)
    print(database_in(str(storage)))
except (UserError, OSError) as error:
    sys.exit(f"error: {error}")
