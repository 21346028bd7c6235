"""Run the approval service."""

from services.approval.app import build

if __name__ == "__main__":
    build().run()
