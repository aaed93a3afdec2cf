"""The CAM method on folders of images: labels are spread, a classifier is trained, masks are made."""
