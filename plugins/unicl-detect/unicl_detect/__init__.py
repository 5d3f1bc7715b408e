"""Detection transfer: Mask R-CNN on any trained image tower, COCO data, box and mask AP.

UniCL (Yang et al., CVPR 2022, section 4.3) fine-tunes its image encoders as the backbone of Mask R-CNN (He et al., ICCV
2017) on COCO, to see what labels and captions together give beyond classification.
"""
