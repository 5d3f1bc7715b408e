"""Records of a JSON document: an array, COCO's images and annotations, or a map from images to texts."""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from unicl_cli.data.sources.lists.cells import looks_like_image
from unicl_cli.data.sources.lists.column_names import is_usual
from unicl_cli.data.sources.lists.record import Record
from unicl_cli.errors import UniclError

_SIDE_LISTS = frozenset(("licenses", "categories"))


def records_of(path: Path, document: Any) -> list[Record]:
    """Return the records of a document. UniclError if it has no form that is known."""
    if isinstance(document, dict):
        if _are_objects(document.get("images")) and _are_objects(document.get("annotations")):
            return list(_coco_records(document))
        document = _list_inside(path, document)
    if not isinstance(document, list):
        raise UniclError(f"{path}: not a list of images", "write an array of JSON objects, or one object per line")
    return [_record(f"item {number}", item) for number, item in enumerate(document, 1)]


def categories_of(document: Any) -> Sequence[Mapping[str, Any]]:
    """Return COCO's categories; none of another document."""
    return _objects(document.get("categories")) if isinstance(document, dict) else ()


def groups_of_categories(path: Path, categories: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    """Return the group of each of COCO's categories under ``key``; none unless all have it.

    UniclError for two categories of one name in different groups.
    """
    groups: dict[str, str] = {}
    for category in categories:
        if not isinstance(group := category.get(key), str):
            return {}
        name = _name_of(category)
        if (other := groups.setdefault(name, group)) != group:
            raise UniclError(
                f"{path}: category '{name}' is in two groups, {other} and {group}", "give each category its own name"
            )
    return groups


def _record(place: str, item: Any) -> Record:
    if isinstance(item, list):  # a pair such as ["1.jpg", "a caption"]
        return Record(place, {str(number): cell for number, cell in enumerate(item)})
    if isinstance(item, dict):
        return Record(place, item)
    return Record(place, {}, "not a JSON object")


def _list_inside(path: Path, document: Mapping[str, Any]) -> list[Any]:
    """Return the only list of objects in a document, its columns as rows, or the entries of a map."""
    if any(map(looks_like_image, document)):
        entries = all(isinstance(value, dict) for value in document.values())
        return [{"image": key, **(value if entries else {"value": value})} for key, value in document.items()]
    if rows := _rows_of_columns(document):
        return rows
    lists = [key for key, value in document.items() if _are_objects(value) and key not in _SIDE_LISTS]
    if len(lists) == 1:
        return document[lists[0]]
    if lists:
        raise UniclError(
            f"{path}: several lists of objects (keys: {', '.join(lists)})", "write one of them into a file of its own"
        )
    values = list(document.values())
    if values and all(isinstance(value, dict) for value in values):
        return [{"key": key, **value} for key, value in document.items()]
    if values and all(isinstance(value, list) for value in values):
        files = [{"image": file, "label": key} for key, of in document.items() for file in of]
        if files and all(looks_like_image(entry["image"]) for entry in files):
            return files
    return [dict(document)]


def _rows_of_columns(document: Mapping[str, Any]) -> list[Any]:
    """Return the rows of a table that is written by columns, as pandas does in three ways; nothing for other forms."""
    names, data = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, names), row, strict=False)) for row in data]
    columns = {key: list(v.values()) if isinstance(v, dict) else v for key, v in document.items()}
    if not any(map(is_usual, document)) or not all(isinstance(column, list) for column in columns.values()):
        return []
    if len({len(column) for column in columns.values()}) != 1:
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _coco_records(document: Mapping[str, Any]) -> Iterator[Record]:
    """Yield COCO's images, each with the captions and the categories of its annotations."""
    names = {str(category.get("id")): _name_of(category) for category in categories_of(document)}
    captions: dict[str, list[Any]] = {}
    categories: dict[str, dict[str, None]] = {}
    known = {str(image.get("id")) for image in document["images"]}
    for number, annotation in enumerate(document["annotations"], 1):
        image, category = str(annotation.get("image_id")), str(annotation.get("category_id"))
        if fault := _find_fault(annotation, known, names):
            yield Record(f"annotation {number}", {}, fault)
            continue
        if "caption" in annotation:
            captions.setdefault(image, []).append(annotation["caption"])
        if "category_id" in annotation:
            categories.setdefault(image, {})[names.get(category, category)] = None
    for number, image in enumerate(document["images"], 1):
        cells = dict(image)
        if captions:
            cells["caption"] = captions.get(str(image.get("id")), [])
        if categories:
            cells["category"] = list(categories.get(str(image.get("id")), ()))
        yield Record(f"image {number}", cells)


def _find_fault(annotation: Mapping[str, Any], images: Set[str], categories: Mapping[str, str]) -> str:
    """Return what an annotation refers to and the document lacks; empty if nothing is lacking."""
    image, category = str(annotation.get("image_id")), str(annotation.get("category_id"))
    if image not in images:
        return f"image_id {image} is not the id of an image"
    if "category_id" in annotation and categories and category not in categories:
        return f"category_id {category} is not the id of a category"
    return ""


def _name_of(category: Mapping[str, Any]) -> str:
    return str(category.get("name", category.get("id")))


def _objects(value: Any) -> Sequence[Mapping[str, Any]]:
    return value if _are_objects(value) else ()
