"""Run the policy service."""

from services.policy.app import build

if __name__ == "__main__":
    build().run()
