"""The browser's end of the live signal: one WebSocket a mount, which asks for a rerun when the server's version is newer.

Mounted inside the fragment it wakes, so that only this reruns and typed text elsewhere stays.
"""

from __future__ import annotations

from streamlit.components.v2 import component

_HTML = (
    '<span class="live" role="status"><span class="dot" aria-hidden="true"></span><span class="word">…</span></span>'
)
_CSS = """
.live { display: inline-flex; align-items: center; gap: 6px; font: 13px var(--st-font); color: var(--st-gray-text-color); }
.dot { width: 8px; height: 8px; border-radius: 50%; background: var(--st-gray-color); }
.live[data-up="1"] .dot { background: var(--st-green-color); }
.live[data-up="0"] .dot { background: var(--st-orange-color); }
"""
_JS = """
const mounts = new WeakMap()
const MAX_DELAY = 10000

function newer(found, rendered) {
  const [epoch, seq] = found.split(":"), [ours, shown] = rendered.split(":")
  return epoch !== ours || BigInt(seq) > BigInt(shown || 0)
}

function show(mount, up) {
  if (!mount.root) return
  mount.root.dataset.up = up ? "1" : "0"
  mount.root.querySelector(".word").textContent = up ? "live" : "reconnecting, refreshed every 5 s"
}

function check(mount) {
  if (mount.seen && mount.seen !== mount.told && newer(mount.seen, mount.rendered)) {
    mount.told = mount.seen
    mount.tell(mount.seen)
  }
}

function connect(mount) {
  if (mount.gone || mount.socket || document.hidden) return
  const scheme = location.protocol === "https:" ? "wss" : "ws"
  const socket = new WebSocket(`${scheme}://${location.host}/api/ws`)
  mount.socket = socket
  socket.onopen = () => { mount.delay = 500; show(mount, true) }
  socket.onmessage = (event) => { mount.seen = event.data; check(mount) }
  socket.onclose = () => {
    mount.socket = null
    show(mount, false)
    mount.timer = setTimeout(() => connect(mount), mount.delay)
    mount.delay = Math.min(mount.delay * 2, MAX_DELAY)
  }
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component
  let mount = mounts.get(parentElement)
  if (!mount) {
    mount = { socket: null, seen: "", told: "", delay: 500, timer: 0, gone: false }
    mounts.set(parentElement, mount)
    mount.visible = () => (document.hidden ? mount.socket && mount.socket.close() : connect(mount))
    document.addEventListener("visibilitychange", mount.visible)
  }
  mount.root = parentElement.querySelector(".live")
  mount.rendered = data.version
  mount.tell = (version) => setTriggerValue("changed", version)
  if (mount.socket && mount.socket.readyState === 1) show(mount, true)
  connect(mount)
  check(mount)
  return () => {
    mount.gone = true
    clearTimeout(mount.timer)
    document.removeEventListener("visibilitychange", mount.visible)
    if (mount.socket) mount.socket.close()
    mounts.delete(parentElement)
  }
}
"""
_mount = component("remit_live", html=_HTML, css=_CSS, js=_JS)


def live_dot(version: str) -> None:
    """Show whether this tab is live, and rerun the surrounding fragment when there is something newer than `version`."""
    _mount(key="live", data={"version": version}, on_changed_change=_nothing)


def _nothing() -> None:
    """Do nothing: the rerun itself is what is wanted."""
