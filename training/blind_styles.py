"""Drawn panels for a reader who names their style and tint, which no caption tells: python -m training.blind_styles

Writes work/blind_styles/: sheets of numbered panels, sheets of real scenes with the names, and, beside that folder,
what the judge reads. With a reader's list as argument, it sets the two against each other.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stlib import paths
from stlib.generation import StoryJob, Storyteller
from stlib.generation.quality import Judge
from training import scenes
from training.concepts import HEROES, LOOKS, OBJECTS, STYLES, WORK
from training.sheets import save_sheet

FOLDER, KEY = WORK / "blind_styles", WORK / "blind_styles_key.json"
METHODS, N_STORIES, SEED = ("parallel", "consistent", "joint"), 5, 70  # 60 panels


def write() -> None:
    """Draws, shuffles, and keeps the judge's word beside the folder."""
    teller, judge = Storyteller.from_pretrained(device="cpu"), Judge()
    told = pd.read_csv(paths.DATA / "stories_held_out.csv", keep_default_na=False)
    panels = [(method, panel) for i, method in enumerate(METHODS) for story in range(N_STORIES)
              for panel in teller.tell(StoryJob(
                  captions=list(told.loc[told["story"] == 100 + N_STORIES * i + story, "caption"]), method=method,
                  seed=SEED + story)).panels]
    order = np.random.default_rng(SEED).permutation(len(panels))
    read, _ = judge.read([panels[i][1] for i in order])
    FOLDER.mkdir(exist_ok=True)
    for start in range(0, len(order), 12):
        chosen, name = [panels[i][1] for i in order[start : start + 12]], f"{start + 1:02d}_to_{start + 12:02d}"
        save_sheet(chosen, FOLDER / f"panels_{name}.png", columns=4, size=256, first=start + 1)
    plain, places = len(scenes.BACKDROPS) - 1, range(len(scenes.BACKDROPS))
    sheets = {f"style_{name}": [[hero, thing, plain, style, 0] for hero in range(-1, len(HEROES)) for thing in
                                (range(len(OBJECTS)) if hero < 0 else [-1])] for style, name in enumerate(STYLES)}
    sheets["looks_by_row"] = [[0, -1, place, 0, look] for look in range(len(LOOKS)) for place in places]
    for name, rows in sheets.items():
        real = [Image.fromarray(picture) for picture in scenes.pictures(np.array(rows))[0]]
        save_sheet(real, FOLDER / f"{name}.png", columns=len(scenes.BACKDROPS), size=128)
    KEY.write_text(json.dumps({"method": [panels[i][0] for i in order], "style": read["style"].tolist(),
                               "look": read["look"].tolist()}))
    print(f"{len(order)} panels in {FOLDER}; the rows of looks_by_row.png are {', '.join(LOOKS)}")


def compare(file: Path) -> None:
    """Prints how often the judge's style and look are the reader's; the list: a line `number,style,look` a panel."""
    key = pd.DataFrame(json.loads(KEY.read_text()))
    with file.open() as lines:
        reader = pd.DataFrame([line[1:] for line in csv.reader(lines)], columns=["style", "look"])
    same = pd.DataFrame({name: key[name] == reader[name].str.strip() for name in reader}).assign(method=key["method"])
    print(same.groupby("method").agg(["mean", "size"]))
    for name in reader:
        print(pd.crosstab(key[name], reader[name].str.strip(), rownames=["judge"], colnames=["reader"]))


if __name__ == "__main__":
    compare(Path(sys.argv[1])) if len(sys.argv) > 1 else write()
