// What a job was asked to do, every default filled in.

import { h } from "../dom.js";
import { card } from "../elements.js";
import { yaml } from "../format.js";

export const open = () => ({ refresh: (job) => card("Spec", h("pre", { tabindex: "0", "aria-label": "Spec" }, yaml(job.spec))) });
