"""One image or recording: its header, its pixels or waveform, and how odd ones are converted.

`decoding.py` reads an image and `waveforms.py` a recording; `pixels.py` alone decides how an image
of any mode becomes grey or RGB.
"""
