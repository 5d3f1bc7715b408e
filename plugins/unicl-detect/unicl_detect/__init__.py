"""Detection transfer: Mask R-CNN on any trained image tower, COCO data, box and mask AP."""
