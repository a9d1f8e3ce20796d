"""The state of jobs and images as JSON."""

from pydantic import BaseModel, Field

from imagen.serve.job import Job, Picture, State
from imagen.serve.service import Service


class PictureState(BaseModel):
    """The state of one image of a job."""

    number: int = Field(description="from 0, in the order of seeds")
    state: State
    seed: int = Field(description="makes the same image, with the other fields of the request (also its variation)")
    resolution: int = Field(description="of the stage that runs, in pixels")
    progress: float = Field(description="share of the steps that are done, 0 to 1")
    error: str | None
    command: str = Field(description="command line that makes the same image; empty if there is none")
    width: int
    height: int
    url: str | None = Field(description="address of the finished image")


class JobState(BaseModel):
    """The state of a job."""

    id: str
    kind: str = Field(description="generate, edit or upscale")
    state: State
    created: int = Field(description="seconds since 1970")
    position: int = Field(description="1 + images of other jobs that start earlier; 0: the job no longer waits")
    error: str | None
    warning: str | None = Field(description="words in the prompt that training never showed, with the nearest names")
    pictures: list[PictureState]


def described(service: Service, job: Job) -> JobState:
    """Return the state of a job."""
    return JobState(
        id=job.id,
        kind=job.kind,
        state=job.state,
        created=int(job.created),
        position=service.jobs.position(job) if job.state == "queued" else 0,
        error=job.error,
        warning=job.warning,
        pictures=[about_picture(job, picture) for picture in job.pictures],
    )


def about_picture(job: Job, picture: Picture) -> PictureState:
    """Return the state of an image."""
    done = picture.state == "done"
    seed = picture.seed
    return PictureState(
        number=picture.number,
        state=picture.state,
        seed=seed if isinstance(seed, int) else seed.other,
        resolution=picture.resolution,
        progress=1.0 if done else round(picture.done / picture.total, 3),
        error=picture.error,
        command=picture.command,
        width=picture.size[0],
        height=picture.size[1],
        url=f"/api/pictures/{file_name(job, picture)}" if done else None,
    )


def file_name(job: Job, picture: Picture) -> str:
    """Return the name under which /api/pictures serves an image."""
    return f"{picture.id}.{job.format}"
