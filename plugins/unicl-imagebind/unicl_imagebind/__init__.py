"""ImageBind: sounds, depth, heat and motion in the space of images and texts."""
