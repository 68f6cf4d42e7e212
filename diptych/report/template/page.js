"use strict";
(() => {
  document.documentElement.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Copy buttons. The clipboard may be refused (plain http, old browsers): select the text then.
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  // The navigation marks the section in view.
  const links = new Map(all(".bar nav a").map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (!link) continue;
      if (entry.isIntersecting) {
        link.setAttribute("aria-current", "true");
        const nav = link.closest("nav");
        nav.scrollLeft = link.offsetLeft - nav.offsetLeft - (nav.clientWidth - link.clientWidth) / 2;
      }
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-30% 0px -69% 0px" });
  all(".section").forEach((section) => seen.observe(section));

  // A printer does not scroll: pictures that were to load later load now.
  addEventListener("beforeprint", () => all("img").forEach((image) => { image.loading = "eager"; }));

  // Charts: the nearest step under the pointer, or arrow keys.
  const hover = JSON.parse(document.getElementById("hover").textContent);
  for (const figure of all("[data-chart]")) {
    const data = hover[Number(figure.dataset.chart)];
    const plot = figure.querySelector(".plot");
    const cursor = figure.querySelector(".cursor");
    const readout = figure.querySelector(".readout");
    const rule = cursor.querySelector("line");
    const dots = all("circle", cursor);
    let at = data.x.length - 1;
    const show = (index) => {
      at = Math.max(0, Math.min(data.x.length - 1, index));
      cursor.setAttribute("visibility", "visible");
      rule.setAttribute("x1", data.x[at] + "%");
      rule.setAttribute("x2", data.x[at] + "%");
      data.lines.forEach((line, k) => {
        const known = at < line.y.length;
        dots[k].setAttribute("visibility", known ? "inherit" : "hidden");
        if (!known) return;
        dots[k].setAttribute("cx", data.x[at] + "%");
        dots[k].setAttribute("cy", line.y[at] + "%");
      });
      const named = data.lines.length > 1;
      const values = data.lines.map((line) => (named ? line.name + " " : "") + (line.label[at] ?? ""));
      readout.textContent = "step " + data.step[at] + ": " + values.join(", ");
    };
    const clear = () => {
      cursor.setAttribute("visibility", "hidden");
      readout.textContent = "";
    };
    plot.setAttribute("tabindex", "0");
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const x = (100 * (event.clientX - box.left)) / box.width;
      let best = 0;
      data.x.forEach((value, k) => { if (Math.abs(value - x) < Math.abs(data.x[best] - x)) best = k; });
      show(best);
    });
    plot.addEventListener("pointerleave", clear);
    plot.addEventListener("blur", clear);
    plot.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageDown: -20, PageUp: 20, Home: -1e9, End: 1e9 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(at + moves[event.key]);
    });
  }

  // Two maps of the same rows: pointing at one marks it in both and shows its picture.
  for (const atlas of all(".atlas")) {
    const labels = JSON.parse(document.getElementById("atlas-labels").textContent);
    const look = document.querySelector(".look");
    const pen = look.querySelector("canvas").getContext("2d");
    const sheet = atlas.querySelector(".sheet");
    const columns = Number(atlas.dataset.columns);
    const maps = all(".map", atlas).map((map) => all("circle", map));
    let marked = -1;
    const mark = (row) => {
      if (row === marked) return;
      for (const circles of maps) {
        circles[marked]?.classList.remove("marked");
        circles[row]?.classList.add("marked");
      }
      marked = row;
      look.hidden = row < 0;
      if (row < 0) return;
      look.querySelector("figcaption").textContent = labels[row];
      pen.clearRect(0, 0, 64, 64);
      if (sheet) pen.drawImage(sheet, 64 * (row % columns), 64 * Math.floor(row / columns), 64, 64, 0, 0, 64, 64);
    };
    all(".map", atlas).forEach((map, side) => {
      const spots = maps[side].map((c) => [Number(c.getAttribute("cx")), Number(c.getAttribute("cy"))]);
      map.addEventListener("pointermove", (event) => {
        const box = map.getBoundingClientRect();
        const x = (1000 * (event.clientX - box.left)) / box.width;
        const y = (1000 * (event.clientY - box.top)) / box.height;
        let best = -1, least = 900;
        spots.forEach(([a, b], k) => {
          const far = (a - x) ** 2 + (b - y) ** 2;
          if (far < least) { least = far; best = k; }
        });
        mark(best);
      });
      map.addEventListener("pointerleave", () => mark(-1));
    });
  }

  // The gallery: filters over what each card says about itself.
  const form = document.querySelector(".filters");
  if (!form) return;
  const PAGE = 24;
  const cards = all("#cards > .card");
  const words = cards.map((card) => card.querySelector(".card-body").textContent.toLowerCase());
  const more = document.querySelector("[data-more]");
  const none = document.querySelector(".none");
  const tally = form.elements.tally;
  let limit = PAGE;
  const matches = (card, k, want) =>
    (!want.kind || card.dataset.kind === want.kind) &&
    (!want.now || card.dataset.now === want.now) &&
    (!want.change || (want.change === "same" ? ["right", "wrong"].includes(card.dataset.change) : card.dataset.change === want.change)) &&
    want.words.every((word) => words[k].includes(word));
  const apply = () => {
    const values = new FormData(form);
    const want = {
      kind: values.get("kind"), now: values.get("now"), change: values.get("change"),
      words: (values.get("words") || "").toLowerCase().split(/\s+/).filter(Boolean),
    };
    let found = 0;
    cards.forEach((card, k) => {
      const fits = matches(card, k, want);
      found += fits;
      card.hidden = !fits || found > limit;
    });
    const shown = Math.min(found, limit);
    tally.textContent = found === shown
      ? found + (found === 1 ? " question" : " questions")
      : "First " + shown + " of " + found + " questions";
    none.hidden = found > 0;
    more.hidden = found <= limit;
  };
  const restart = () => { limit = PAGE; apply(); };
  form.addEventListener("input", restart);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(restart));
  more.addEventListener("click", () => {
    const next = limit;
    limit += PAGE;
    apply();
    // Keyboard users go on where the new cards begin.
    cards.filter((card) => !card.hidden)[next]?.focus({ preventScroll: true });
  });
  for (const link of all("a[data-kind]")) {
    link.addEventListener("click", () => {
      form.reset();
      const option = all("option", form).find((choice) => choice.value === link.dataset.kind);
      if (option) option.selected = true;
      setTimeout(restart);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      form.elements.words.focus();
    } else if (event.key === "j" || event.key === "k") {
      const visible = cards.filter((card) => !card.hidden);
      const next = visible.indexOf(document.activeElement) + (event.key === "j" ? 1 : -1);
      visible[Math.max(0, Math.min(visible.length - 1, next))]?.focus();
    }
  });
  apply();
})();
