// Asks the server once a second what it does, and draws the answer. What others wrote enters the page as text only.
"use strict"

const KINDS = {
  reused: "prompt: had K/V already, and was not computed",
  shared: "prompt: new in this conversation, and found in the prefix cache",
  recomputed: "prompt: had K/V that was evicted, and was computed again",
  new: "prompt: computed for the first time",
  forced: "reply: the grammar left no alternative",
  accepted: "reply: drafted from earlier text, and accepted by the model",
  sampled: "reply: chosen by the model without a draft",
}
const at = id => document.getElementById(id)
let key = ""

function element(name, options = {}, ...children) {
  const made = Object.assign(document.createElement(name), options)
  made.append(...children)
  return made
}

const number = value => value.toLocaleString("en")
const slug = kind => kind.replace(" ", "-")

// A bar with a part for each count, `whole` wide, and below it each count in words.
function bar(counts, whole, unit) {
  const parts = Object.entries(counts).filter(([, count]) => count > 0)
  const words = parts.map(([kind, count]) => `${kind} ${number(count)}`)
  const drawn = element("div", {className: "bar"})
  drawn.setAttribute("role", "img")
  drawn.setAttribute("aria-label", `${unit}: ${words.join(", ") || "none"}`)
  const legend = element("div", {className: "legend"})
  for (const [place, [kind, count]] of parts.entries()) {
    const part = element("i", {className: slug(kind), title: `${words[place]} ${unit}`})
    part.style.width = `${100 * count / whole}%`
    drawn.append(part)
    legend.append(element("span", {}, element("i", {className: slug(kind)}), words[place]))
  }
  return element("div", {}, drawn, legend)
}

const total = counts => Object.values(counts).reduce((sum, count) => sum + count, 0)

function reply(pieces) {
  const spans = pieces.map(([kind, text]) => element("span", {className: kind, title: kind, textContent: text}))
  return pieces.length ? element("pre", {className: "text"}, ...spans) : ""
}

function turn(shown, whole, live) {
  const about = live ? `under way, ${shown.state}:` : `turn ${shown.turn}, ended by ${shown.state}:`
  const lines = [element("p", {}, `${about} `, element("span", {className: "input", textContent: shown.input ?? ""}))]
  if (shown.drift) {
    const {reason, message, lost} = shown.drift
    const words = `history ${reason} from message ${message} on: ${number(lost)} tokens of the conversation do not count`
    lines.push(element("p", {className: "warning", textContent: words}))
  }
  return element("li", {className: live ? "turn live" : "turn"}, ...lines, bar(shown.tokens, whole, "tokens"), live ? reply(shown.text) : "")
}

function conversation(shown) {
  const whole = Math.max(1, ...[...shown.turns, ...shown.live].map(each => total(each.tokens)))
  const hidden = shown.count - shown.turns.length
  return element("li", {},
    element("h3", {textContent: `${shown.number}. ${shown.title}`}),
    shown.origin ? element("p", {className: "origin", textContent: shown.origin}) : "",
    hidden > 0 ? element("p", {className: "note", textContent: `${number(hidden)} earlier turns are not shown`}) : "",
    element("ol", {}, ...shown.turns.map(each => turn(each, whole, false)), ...shown.live.map(each => turn(each, whole, true))),
    shown.live.length ? "" : reply(shown.text))
}

function draw(seen) {
  at("model").textContent = seen.model
  const {running, waiting, done, refused, left} = seen
  const counts = [`${running} turns run`, `${waiting} wait`, `${number(done)} done`, `${number(left)} given up`, `${number(refused)} refused`]
  at("status").textContent = `${counts.join(", ")}.`
  at("login").hidden = seen.tenant !== null
  const {pages, page_size, ...held} = seen.pool
  const parts = {"in use": held["in use"], idle: held.idle, free: held.free}
  at("pool").replaceChildren(element("p", {textContent: `${number(pages)} pages of ${page_size} tokens`}), bar(parts, pages, "pages"))
  at("totals").replaceChildren(bar(seen.totals, Math.max(1, total(seen.totals)), "tokens"))
  const none = seen.tenant === null ? "A key shows the conversations of its tenant." : "There has been no turn yet."
  const shown = seen.conversations.map(conversation)
  at("conversations").replaceChildren(...(shown.length ? shown : [element("li", {className: "note", textContent: none})]))
}

async function look() {
  try {
    const headers = key ? {authorization: `Bearer ${key}`} : {}
    const answer = await fetch("/activity", {headers})
    const seen = await answer.json()
    if (answer.ok) {
      draw(seen)
    } else {
      key = answer.status === 401 ? "" : key
      at("problem").textContent = seen.error.message
    }
  } catch {
    at("status").textContent = "The server does not answer."
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look()
    await new Promise(after => setTimeout(after, 1000))
  }
}

at("login").addEventListener("submit", event => {
  event.preventDefault()
  key = at("key").value
  at("problem").textContent = ""
  at("key").value = ""
  look()
})
at("kinds").append(...Object.entries(KINDS).flatMap(([kind, means]) =>
  [element("dt", {}, element("i", {className: kind}), kind), element("dd", {textContent: means})]))
watch()
