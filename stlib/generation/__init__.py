"""Generation: a prompt becomes a story and its pictures. It knows nothing of queues."""

from stlib.generation.job import StoryJob, StoryResult
from stlib.generation.loading import load_llm
from stlib.generation.methods import METHODS
from stlib.generation.models import ModelError, fetch_models, weights_hash
from stlib.generation.story import StoryWriter
from stlib.generation.storyteller import Storyteller

__all__ = ["METHODS", "ModelError", "StoryJob", "StoryResult", "StoryWriter", "Storyteller", "fetch_models", "load_llm",
           "weights_hash"]
