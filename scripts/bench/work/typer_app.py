"""A minimal Typer app, to compare `--help` with."""

import typer

app = typer.Typer()


@app.command()
def hello(name: str):
    """Say hello."""
    print(f"hello {name}")


app()
