"use strict";
// The blind comparison. Its state is `votes`: "left", "right" or "tie" for each of the first trials, in their order.

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", t: "tie", Backspace: "undo", u: "undo" };
const { id, seed, runs, trials } = JSON.parse(byId("trials").textContent);
const place = `rayvideo votes ${id}`;
let votes = [];

function byId(name) {
  return document.getElementById(name);
}

// Wilson's 95 % interval of a share of n votes, as rayvideo/evaluation/comparison/votes.py has it.
function wilson(wins, n) {
  const z = 1.959963984540054;
  const share = wins / n;
  const middle = (share + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z / (1 + (z * z) / n)) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  return { share, low: middle - half, high: middle + half };
}

// Each run against each one before it: { run, over, wins, losses, ties }.
function tally(labels, trials, votes) {
  const rates = [];
  for (const [i, over] of labels.entries()) {
    for (const run of labels.slice(i + 1)) {
      const rate = { run, over, wins: 0, losses: 0, ties: 0 };
      votes.forEach((choice, n) => {
        const sides = [trials[n].left.run, trials[n].right.run];
        if (!sides.includes(run) || !sides.includes(over)) return;
        if (choice === "tie") rate.ties += 1;
        else if (trials[n][choice].run === run) rate.wins += 1;
        else rate.losses += 1;
      });
      if (rate.wins + rate.losses + rate.ties) rates.push(rate);
    }
  }
  return rates;
}

function sentence({ run, over, wins, losses, ties }) {
  const n = wins + losses + ties;
  const { share, low, high } = wilson(wins + ties / 2, n);
  const percent = (value) => `${Math.round(100 * value)} %`;
  return `${run} over ${over}: ${percent(share)} (${percent(low)} to ${percent(high)}) of ${n} votes: ` +
    `${wins} for it, ${losses} against, ${ties} ties`;
}

// Browsers refuse storage to pages in a frame of another site, such as MLflow's view of an artifact.
function remember() {
  try {
    localStorage.setItem(place, JSON.stringify(votes));
  } catch {
    byId("kept").textContent = "This browser keeps no votes for this page: save them before you close it.";
  }
}

function recall() {
  try {
    votes = JSON.parse(localStorage.getItem(place)) ?? [];
  } catch {
    votes = [];
  }
}

// Each clip waits for the others at its end: clips that loop on their own drift apart, and motion can't be compared.
function loopTogether(videos) {
  const again = () => {
    if (videos.every((video) => video.ended || video.error)) videos.forEach((video) => video.play());
  };
  for (const video of videos) {
    video.loop = false;
    video.addEventListener("ended", again);
  }
}

function play(side, clip) {
  const video = byId(side);
  video.src = document.querySelector(`video[data-clip="${clip}"]`).src;
  video.play().catch(() => {}); // the next clip may come before this one began
}

function show() {
  const trial = trials[votes.length];
  byId("progress").textContent = trial ? `${votes.length + 1} of ${trials.length}` : `${trials.length} of ${trials.length}`;
  byId("trial").hidden = !trial;
  byId("result").hidden = byId("anew").hidden = Boolean(trial);
  byId("undo").disabled = byId("save").disabled = !votes.length;
  if (trial) {
    byId("caption").textContent = trial.caption;
    play("left", trial.left.clip);
    play("right", trial.right.clip);
  } else {
    const items = tally(Object.keys(runs), trials, votes).map((rate) => {
      const item = document.createElement("li");
      item.textContent = sentence(rate);
      return item;
    });
    byId("rates").replaceChildren(...items);
  }
}

function choose(choice) {
  if (choice === "undo") votes.pop();
  else if (votes.length < trials.length) votes.push(choice);
  remember();
  show();
}

function save() {
  const given = votes.map((choice, n) => ({ ...trials[n], choice }));
  const text = JSON.stringify({ version: 1, seed, runs, votes: given }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `votes-${id}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function pause(event) {
  const paused = event.target.getAttribute("aria-pressed") !== "true";
  event.target.setAttribute("aria-pressed", paused);
  event.target.textContent = paused ? "Play clips" : "Pause clips";
  document.querySelectorAll("video[data-clip]").forEach((video) => (paused ? video.pause() : video.play()));
}

document.querySelectorAll(".clips figure").forEach((figure) => loopTogether([...figure.querySelectorAll("video")]));

if (trials.length) {
  const dialog = byId("blind");
  loopTogether([byId("left"), byId("right")]);
  byId("vote").addEventListener("click", () => {
    recall();
    show();
    dialog.showModal();
  });
  byId("leave").addEventListener("click", () => dialog.close());
  byId("save").addEventListener("click", save);
  byId("undo").addEventListener("click", () => choose("undo"));
  byId("pause").addEventListener("click", pause);
  byId("anew").addEventListener("click", () => {
    if (!confirm("Forget these votes in this browser? Save them first.")) return;
    votes = [];
    remember();
    show();
  });
  document.querySelectorAll("[data-choice]").forEach((button) => {
    button.addEventListener("click", () => choose(button.dataset.choice));
  });
  // On the document: the focus leaves the dialog when a button that has it is disabled.
  document.addEventListener("keydown", (event) => {
    const plain = dialog.open && !(event.ctrlKey || event.metaKey || event.altKey || event.repeat);
    const choice = plain && KEYS[event.key];
    if (!choice) return;
    event.preventDefault();
    choose(choice);
  });
}
