"""A model on a server, asked as one in this process; without torch."""

from paligemma.client.client import Client
from paligemma.client.pictures import RemoteImage

__all__ = ["Client", "RemoteImage"]
