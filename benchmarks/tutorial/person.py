"""The person of the tutorial-style pair: what `contracts.person` says, as a pydantic model."""

from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person."""

    id: str = Field(min_length=1, max_length=64)
    name: str
    age: int = Field(ge=0, le=150)
    email: str
    phone: str
    address: str
    city: str
    state: str
    zip: str
    country: str
