"""Annotated images in COCO's layout for detectors: batches, box and mask AP, pictures of detections.

It has no part that `unicl` finds by name: unicl-detect and other detectors import it.
"""
