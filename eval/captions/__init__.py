"""Generated captions against references and against the truth: the standard metrics, and what the caption says of its picture.

`python -m eval.captions results.json annotations.json` scores a COCO results file.
"""
