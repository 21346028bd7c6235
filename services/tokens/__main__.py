"""Run the tokens service."""

from services.tokens.app import build

if __name__ == "__main__":
    build().run()
