// Searching what a page has not read of a log: the service looks, page after page, from the newest line towards the oldest.

import { request } from "./api.js";

const WAIT_MS = 250; // until somebody has typed
const PAGE = 200, MOST = 1000; // lines found before the search stops to be asked on

/**
 * Search a log.
 * @param path of the log, with what else it is asked for
 * @param words the text that lines are to contain
 * @param before the number of the oldest line that is known already
 * @param onNews told `{lines, numSearched, state}` after each page: the lines of it, oldest first, the lines looked at so far, and
 *   `searching`, `full` where there are many, `broken` with the error, or `over`
 * @returns {stop(), on()}: end it; go on where it is full or broken
 */
export function search(path, words, before, onNews) {
  const controller = new AbortController();
  let cursor = before, numSearched = 0;
  const timer = setTimeout(run, WAIT_MS);

  async function run() {
    try {
      for (let numFound = 0; ; ) {
        const asked = new URLSearchParams({ contains: words, before: cursor, limit: PAGE });
        const page = await (await request(`${path}&${asked}`, { signal: controller.signal })).json();
        if (controller.signal.aborted) return;
        numFound += page.data.length;
        numSearched += page.num_searched;
        cursor = page.next_cursor;
        const state = !page.has_more ? "over" : numFound < MOST ? "searching" : "full";
        onNews({ lines: page.data, numSearched, state });
        if (state !== "searching") return;
      }
    } catch (error) {
      if (!controller.signal.aborted) onNews({ lines: [], numSearched, state: "broken", error });
    }
  }
  return {
    stop: () => {
      clearTimeout(timer);
      controller.abort();
    },
    on: run,
  };
}
