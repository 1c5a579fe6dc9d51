"""Where images come from."""

import lazy_loader

_ROOMS = ["faces", "ffcv", "folders", "imagenet200", "overlays", "registry", "saved", "targets", "thumbnails"]
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_ROOMS)
