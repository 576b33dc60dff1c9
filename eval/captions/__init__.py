"""Generated captions against references and against the truth: the standard metrics, and the content of captions.

`python -m eval.captions results.json annotations.json` scores a COCO results file.
"""
