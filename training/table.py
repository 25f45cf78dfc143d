"""The embedded table's model: fitted to three quarters of the survey."""

import shutil
import time

from stlib.generation.tables import TableDiffusion
from stlib.generation.tables.fair import train_and_held_out
from training.concepts import MODEL_DIR

FOLDER = MODEL_DIR.with_name("table")


def fit() -> None:
    """Writes data/models/table, but for its card."""
    rows, _ = train_and_held_out()
    began = time.time()
    model = TableDiffusion.fit(rows)
    print(f"fitted to {len(rows)} rows in {time.time() - began:.0f} s", flush=True)
    written = model.save(FOLDER.with_name("table.new"))
    FOLDER.mkdir(exist_ok=True)
    for file in written.iterdir():
        shutil.move(file, FOLDER / file.name)
    written.rmdir()
