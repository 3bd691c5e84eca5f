// Loads a folder with transformers.js; see javascript.py. Question on standard input, answer on the
// last line of standard output, both JSON.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const question = JSON.parse(fs.readFileSync(0, 'utf8'));
// Nothing of generation_config.json that changes logits.
const GREEDY = {
    do_sample: false,
    num_beams: 1,
    repetition_penalty: 1.0,
    no_repeat_ngram_size: 0,
    min_length: 0,
    forced_bos_token_id: null,
    forced_eos_token_id: null,
    bad_words_ids: null,
    suppress_tokens: null,
    begin_suppress_tokens: null,
    return_timestamps: false,
};
try {
    const manifest = JSON.parse(fs.readFileSync(path.join(question.library, 'package.json'), 'utf8'));
    const entry = manifest.exports?.node?.import?.default ?? manifest.main;
    const library = await import(pathToFileURL(path.join(question.library, entry)).href);
    const { AutoTokenizer, Tensor, env } = library;
    env.allowRemoteModels = false;
    env.localModelPath = path.dirname(question.folder) + '/';
    const name = path.basename(question.folder);
    const tensor = (rows) =>
        new Tensor('int64', BigInt64Array.from(rows.map(BigInt)), [1, rows.length]);

    const unpacked = ({ type, dims, data }) =>
        new Tensor(
            type,
            type === 'int64' ? BigInt64Array.from(data.map(BigInt)) : Float32Array.from(data),
            dims,
        );

    const tokenizer = await AutoTokenizer.from_pretrained(name);
    const ids = tokenizer.encode(question.text);
    const made = {};
    for (const dtype of question.dtypes) {
        const model = await library[question.auto_class].from_pretrained(name, { dtype });
        if (question.pairs) {
            made[dtype] = [];
            const { starts, length, sources } = question.pairs[dtype];
            for (const source of sources) {
                const inputs = Object.fromEntries(
                    Object.entries(source).map(([name, array]) => [name, unpacked(array)]),
                );
                const all = await model.generate({
                    ...inputs,
                    ...GREEDY,
                    decoder_input_ids: [starts],
                    max_new_tokens: length,
                });
                made[dtype].push(all.tolist()[0].map(Number).slice(1));
            }
        } else if (question.prompts) {
            made[dtype] = [];
            for (const prompt of question.prompts) {
                const all = await model.generate({
                    input_ids: tensor(prompt),
                    attention_mask: tensor(prompt.map(() => 1)),
                    max_new_tokens: question.length,
                    ...GREEDY,
                });
                made[dtype].push(all.tolist()[0].map(Number).slice(prompt.length));
            }
        } else {
            const result = await model({
                input_ids: tensor(ids),
                attention_mask: tensor(ids.map(() => 1)),
                token_type_ids: tensor(ids.map(() => 0)),
            });
            made[dtype] = {};
            for (const output of question.outputs) {
                made[dtype][output] = Array.from(result[output].data, Number);
            }
        }
        await model.dispose();
    }
    console.log(JSON.stringify({ version: manifest.version, ids, made }));
} catch (error) {
    console.log(JSON.stringify({ problem: String(error?.message ?? error) }));
}
