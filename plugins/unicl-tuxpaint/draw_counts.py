"""Draws `counts.png`: captions and spoken names by language. `python draw_counts.py [FOLDER of the stamps]`."""

import sys
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw
from unicl_tuxpaint import DEBIAN
from unicl_tuxpaint.stamps import find_stamps

LINE, LEFT, WIDTH, MOST = 18, 60, 640, 16


def main() -> None:
    stamps = find_stamps(Path(sys.argv[1] if len(sys.argv) > 1 else DEBIAN)).stamps
    captions = Counter(language for stamp in stamps for language in stamp.captions)
    names = Counter(language for stamp in stamps for language in stamp.names)
    shown = [*dict(names.most_common()), *(of for of in ("de", "it", "ja", "zh_TW", "hi", "ar") if of not in names)][
        :MOST
    ]
    image = Image.new("RGB", (WIDTH, LINE * (len(shown) + 2)), "white")
    pen = ImageDraw.Draw(image)
    legend = f"{len(stamps)} images: captions in {len(captions)} languages (grey), spoken names in {len(names)} (blue)"
    pen.text((6, 4), legend, fill="black")
    scale = (WIDTH - LEFT - 50) / len(stamps)
    for number, language in enumerate(shown, 1):
        top = number * LINE + 6
        pen.text((6, top), language, fill="black")
        pen.rectangle((LEFT, top + 1, LEFT + captions[language] * scale, top + 12), fill=(205, 205, 205))
        if names[language]:
            pen.rectangle((LEFT, top + 1, LEFT + names[language] * scale, top + 12), fill=(70, 120, 200))
        pen.text((WIDTH - 44, top), str(names[language] or "-"), fill="black")
    image.save(Path(__file__).with_name("counts.png"), optimize=True)


if __name__ == "__main__":
    main()
