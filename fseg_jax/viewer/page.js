// The page's script, run by Bokeh when the slide is drawn: keys, the viewpoint, and messages to the server.
// Arguments: slide, command, modes, tools (the tool of each mode), tiles, limits, savedView (null: whole slide).
if (window.fseg) return
const send = (name, ...args) => { command.value = JSON.stringify([Date.now() + Math.random(), name, ...args]) }

// The view is a centre, µm, and one scale for both axes, µm per pixel, so resizing the window keeps the aspect.
let view = savedView
let fitted = savedView == null  // show the whole slide, also after the window is resized
const size = () => [slide.inner_width, slide.inner_height]
const wholeView = () => {
  const [w, h] = size()
  return { x: limits.width / 2, y: limits.height / 2, scale: 1.06 * Math.max(limits.width / w, limits.height / h) }
}
const applyView = () => {
  const [w, h] = size()
  if (!(w > 1 && h > 1)) return
  if (fitted) view = wholeView()
  view.scale = Math.min(Math.max(view.scale, limits.finest), 4 * wholeView().scale)
  view.x = Math.min(Math.max(view.x, 0), limits.width)
  view.y = Math.min(Math.max(view.y, 0), limits.height)
  slide.x_range.setv({ start: view.x - view.scale * w / 2, end: view.x + view.scale * w / 2 })
  slide.y_range.setv({ start: -view.y - view.scale * h / 2, end: -view.y + view.scale * h / 2 })
}
// Each tile layer of Bokeh corrects the aspect on its own, later: apply the view again after that.
const reapplyView = () => { applyView(); for (const ms of [50, 250]) setTimeout(applyView, ms) }
let sendTimer = null
const sendView = () => {
  clearTimeout(sendTimer)
  sendTimer = setTimeout(() => send("view", fitted ? null : view), 200)
}
const followRanges = () => {
  const [w, h] = size()
  const { start: x0, end: x1 } = slide.x_range
  const { start: y0, end: y1 } = slide.y_range
  const scale = (x1 - x0) / w
  const before = view
  fitted = false
  view = { x: (x0 + x1) / 2, y: -(y0 + y1) / 2, scale }
  const outside = view.x < 0 || view.x > limits.width || view.y < 0 || view.y > limits.height
  const off = Math.abs((y1 - y0) / h / scale - 1) > 1e-6
  if (scale < limits.finest || scale > 4 * wholeView().scale) { view = before; applyView() }
  else if (outside || off) applyView()
  sendView()
}
const goTo = (x, y, scale) => { fitted = false; view = { x, y, scale: scale ?? view.scale }; applyView(); sendView() }
const fit = () => { fitted = true; applyView(); sendView() }
const moveBy = (dx, dy) => { const [w, h] = size(); goTo(view.x + dx * w * view.scale, view.y + dy * h * view.scale) }
const zoomBy = (factor) => goTo(view.x, view.y, view.scale * factor)

const applyMode = () => {
  const chosen = tools[modes.active]
  for (const tool of tools) if (tool !== chosen) tool.active = false
  chosen.active = true
}
modes.connect(modes.properties.active.change, applyMode)
for (const p of ["inner_width", "inner_height"]) slide.connect(slide.properties[p].change, reapplyView)
for (const layer of tiles) layer.connect(layer.properties.visible.change, reapplyView)
applyMode()
reapplyView()
// Bokeh takes a second click within 300 ms, anywhere, for a double click, and a long click for a press, which
// cannot become a drag. Switch both off: here every click places a seed, and a drag may begin slowly.
const gestures = Bokeh.index.find_one(slide).canvas_view.ui_event_bus.ui_gestures.constructor
gestures.doubletap_threshold = 0
gestures.press_threshold = 2 ** 31 - 1
// Browsers outline the element that has the keyboard focus, and a figure gets it at every click.
window.addEventListener("focusin", (event) => {
  const target = event.composedPath()[0]
  if (target.classList.contains("bk-events")) target.style.outline = "none"
})

window.addEventListener("click", (event) => {
  for (const { dataset } of event.composedPath()) {
    if (dataset?.send) return send(...JSON.parse(dataset.send))
    if (dataset?.to) return goTo(...JSON.parse(dataset.to))
  }
})

const chooseMode = (i) => { if (i < tools.length) modes.active = i } // a slide without embeddings has one mode only
// The chosen opacity is kept as a slider's is when it is let go.
const changeOpacity = (names, by) => {
  const slider = names.map((name) => slide.document.get_model_by_name(name)).find((model) => model != null)
  if (!slider) return
  const value = Math.min(1, Math.max(0, Math.round(100 * (slider.value + by)) / 100))
  slider.setv({ value, value_throttled: value })
}
const help = document.getElementById("help")
const showHelp = () => { help.open ? help.close() : help.showModal() }
document.querySelector("[data-help]").addEventListener("click", showHelp)
const isTyping = (target) => {
  if (target.isContentEditable || target.tagName === "TEXTAREA" || target.tagName === "SELECT") return true
  return target.tagName === "INPUT" && !["checkbox", "radio", "button", "range"].includes(target.type)
}
const keys = {
  ArrowLeft: () => moveBy(-0.12, 0), ArrowRight: () => moveBy(0.12, 0),
  ArrowUp: () => moveBy(0, -0.12), ArrowDown: () => moveBy(0, 0.12),
  "+": () => zoomBy(1 / 1.5), "=": () => zoomBy(1 / 1.5), "-": () => zoomBy(1.5), f: fit,
  m: () => chooseMode(0), b: () => chooseMode(1), e: () => chooseMode(2), l: () => chooseMode(3), y: () => send("redo"), Escape: () => send("unselect"), a: () => send("assign"),
  "[": () => changeOpacity(["result_alpha", "layer_alpha"], -0.1), "]": () => changeOpacity(["result_alpha", "layer_alpha"], 0.1),
  "{": () => changeOpacity(["layer_alpha"], -0.1), "}": () => changeOpacity(["layer_alpha"], 0.1), "?": showHelp,
}
window.addEventListener("keydown", (event) => {
  const target = event.composedPath()[0]
  if (help.open) { if (event.key === "?") help.close(); return }
  if (event.altKey || (target instanceof Element && isTyping(target))) return
  if (target instanceof Element && target.classList.contains("noUi-handle") && event.key.startsWith("Arrow")) return
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
  if (key === "z") send(event.shiftKey ? "redo" : "undo")
  else if (event.ctrlKey || event.metaKey) return
  else if (/^[1-9]$/.test(key)) { if (modes.active > 1) chooseMode(0); send("class", Number(key) - 1) }
  else if (key in keys) keys[key]()
  else return
  event.preventDefault()
})
window.fseg = {
  send, followRanges, goTo, fit,
  download: (url) => { const a = document.createElement("a"); a.href = url; a.download = ""; a.click() },
}
