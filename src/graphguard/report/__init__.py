"""A thread's or a database's story: what was spent where, what tripped, and how to go on from there."""

from graphguard.report.database import Chapter, Library, library
from graphguard.report.page import library_page, story_page
from graphguard.report.story import Branch, Point, Story, Tale, story

__all__ = ["Branch", "Chapter", "Library", "Point", "Story", "Tale", "library", "library_page", "story", "story_page"]
