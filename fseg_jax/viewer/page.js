// The page's glue, run by Bokeh once the slide is drawn: keys, one scale for both axes, and messages to the
// server. Arguments: slide, command, modes, tools (by mode), tiles, limits, left (the view to come back to).
if (window.fseg) return
const send = (name, ...args) => { command.value = JSON.stringify([Date.now() + Math.random(), name, ...args]) }

// The view is a centre and a scale, µm and µm per pixel: whatever the window's size, the aspect is true.
let view = left
let fitted = left == null  // the whole slide, however the window is resized
const size = () => [slide.inner_width, slide.inner_height]
const whole = () => {
  const [w, h] = size()
  return { x: limits.width / 2, y: limits.height / 2, scale: 1.06 * Math.max(limits.width / w, limits.height / h) }
}
const settle = () => {
  const [w, h] = size()
  if (!(w > 1 && h > 1)) return
  if (fitted) view = whole()
  view.scale = Math.min(Math.max(view.scale, limits.finest), 4 * whole().scale)
  view.x = Math.min(Math.max(view.x, 0), limits.width)
  view.y = Math.min(Math.max(view.y, 0), limits.height)
  slide.x_range.setv({ start: view.x - view.scale * w / 2, end: view.x + view.scale * w / 2 })
  slide.y_range.setv({ start: -view.y - view.scale * h / 2, end: -view.y + view.scale * h / 2 })
}
// Bokeh's tile layers mend the aspect themselves, each by itself, so this has the last word.
const resettle = () => { settle(); for (const ms of [50, 250]) setTimeout(settle, ms) }
let telling = null
const tell = () => {
  clearTimeout(telling)
  telling = setTimeout(() => send("view", fitted ? null : view), 200)
}
const moved = () => {
  const [w, h] = size()
  const { start: x0, end: x1 } = slide.x_range
  const { start: y0, end: y1 } = slide.y_range
  const scale = (x1 - x0) / w
  const before = view
  fitted = false
  view = { x: (x0 + x1) / 2, y: -(y0 + y1) / 2, scale }
  const outside = view.x < 0 || view.x > limits.width || view.y < 0 || view.y > limits.height
  const off = Math.abs((y1 - y0) / h / scale - 1) > 1e-6
  if (scale < limits.finest || scale > 4 * whole().scale) { view = before; settle() }
  else if (outside || off) settle()
  tell()
}
const to = (x, y, scale) => { fitted = false; view = { x, y, scale: scale ?? view.scale }; settle(); tell() }
const fit = () => { fitted = true; settle(); tell() }
const shift = (dx, dy) => { const [w, h] = size(); to(view.x + dx * w * view.scale, view.y + dy * h * view.scale) }
const zoom = (factor) => to(view.x, view.y, view.scale * factor)

const mode = () => {
  const chosen = tools[modes.active]
  for (const tool of tools) if (tool !== chosen) tool.active = false
  chosen.active = true
}
modes.connect(modes.properties.active.change, mode)
for (const p of ["inner_width", "inner_height"]) slide.connect(slide.properties[p].change, resettle)
for (const layer of tiles) layer.connect(layer.properties.visible.change, resettle)
mode()
resettle()
// To Bokeh a second click within 300 ms, wherever it is, is no click, and neither is one held for longer; nor
// does what is held for longer drag. Here every click is a seed, and every drag a drag.
const gestures = Bokeh.index.find_one(slide).canvas_view.ui_event_bus.ui_gestures.constructor
gestures.doubletap_threshold = 0
gestures.press_threshold = 2 ** 31 - 1
// Browsers frame what has the keyboard; a figure has it whenever it is clicked.
window.addEventListener("focusin", (event) => {
  const target = event.composedPath()[0]
  if (target.classList.contains("bk-events")) target.style.outline = "none"
})

window.addEventListener("click", (event) => {
  for (const { dataset } of event.composedPath()) {
    if (dataset?.send) return send(...JSON.parse(dataset.send))
    if (dataset?.to) return to(...JSON.parse(dataset.to))
  }
})

const choose = (i) => { if (i < tools.length) modes.active = i } // a slide that is only looked at has one mode
const typing = (target) => {
  if (target.isContentEditable || target.tagName === "TEXTAREA" || target.tagName === "SELECT") return true
  return target.tagName === "INPUT" && !["checkbox", "radio", "button", "range"].includes(target.type)
}
const keys = {
  ArrowLeft: () => shift(-0.12, 0), ArrowRight: () => shift(0.12, 0),
  ArrowUp: () => shift(0, -0.12), ArrowDown: () => shift(0, 0.12),
  "+": () => zoom(1 / 1.5), "=": () => zoom(1 / 1.5), "-": () => zoom(1.5), f: fit,
  m: () => choose(0), b: () => choose(1), e: () => choose(2), l: () => choose(3), y: () => send("redo"), Escape: () => send("unselect"),
}
window.addEventListener("keydown", (event) => {
  const target = event.composedPath()[0]
  if (event.altKey || (target instanceof Element && typing(target))) return
  if (target instanceof Element && target.classList.contains("noUi-handle") && event.key.startsWith("Arrow")) return
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
  if (key === "z") send(event.shiftKey ? "redo" : "undo")
  else if (event.ctrlKey || event.metaKey) return
  else if (/^[1-9]$/.test(key)) { if (modes.active > 1) choose(0); send("class", Number(key) - 1) }
  else if (key in keys) keys[key]()
  else return
  event.preventDefault()
})
window.fseg = {
  send, moved, to, fit,
  download: (url) => { const a = document.createElement("a"); a.href = url; a.download = ""; a.click() },
}
