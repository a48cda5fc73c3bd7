"""Older turns of long conversations are folded into summaries, by a worker and when the engines are idle."""

from devmentor.pbml.summaries.folder import Folder

__all__ = ["Folder"]
