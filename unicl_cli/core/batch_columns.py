"""Keys of a batch's rows, and the names of the columns of ``Batch.extra`` that describe labels and captions."""

ROW_KEYS = 1 << 40
"""The key of a row without a label is this plus its number; labels are below 2^31."""
HASH_KEYS = 1 << 62
"""The key of a caption is this plus its 62-bit hash."""
OWN_TEXT = "own_text"
"""int64 (b,): the key of the caption that the row shows; NO_KEY for a prompt or no text."""
LABEL_SET = "label_set"
"""int64 (b, S): all labels of the row, NO_LABEL where it has fewer than S; none of a row without annotations."""
SHOWN = "shown"
"""int64 (b,): the class that the row's prompt names; NO_LABEL for a caption or no text."""
KNOWN = "known"
"""int64 (b,): bit g is set if the row is annotated for group g; 0 for a row without annotations."""
NAMED = "named"
"""int64 (b, N): the classes that the caption of a row without a label names, NO_LABEL where they are fewer than N."""
