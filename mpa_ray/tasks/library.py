"""The tasks that ship with the package."""

from __future__ import annotations

from mpa_ray.tasks.task import Task

TASKS = {
    task.name: task
    for task in (
        Task(
            name="text_vqa",
            annotation_instruction=(
                "Write one question about this image that cannot be answered without reading the text in it. The "
                "question may ask for a piece of that text directly, or need some reasoning over it. Ask only what "
                "the image settles. Give the correct answer, as short as it can be: a word, a phrase, or yes or no."
            ),
        ),
        Task(
            name="chart_qa",
            annotation_instruction=(
                "Write one question about the data in this chart. Choose one of four kinds: looking up one value; "
                "comparing values, with arithmetic if you like; a trend or pattern; something that follows from the "
                "data. Ask only what the chart settles. Give the correct answer, as short as it can be: a number, a "
                "word, a phrase, or yes or no."
            ),
        ),
        Task(
            name="knowledge_vqa",
            annotation_instruction=(
                "Write one question about this image that needs the image and also knowledge that is not in it. "
                "Choose one of five kinds: objects and scenes; common sense; culture and history; science and facts; "
                "everyday and social life. The question must depend on what is shown. Give the correct answer as a "
                "single word."
            ),
        ),
        Task(
            name="demo_world",
            annotation_instruction="Write one question about this image and its short answer.",
            # The bundled teacher was trained on this sentence alone.
            reply_format="",
        ),
    )
}
