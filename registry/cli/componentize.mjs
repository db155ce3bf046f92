// Runs componentize-js for `extctl build`, from the folder of the sources. Its own command line cannot pass on where wizer, which it
// starts without any environment, may keep its cache: that would be the home folder of the account, which need not exist.
import { writeFile } from 'node:fs/promises';
import { pathToFileURL } from 'node:url';

const [library, entry, witPath, worldName, output, ...disableFeatures] = process.argv.slice(2);
try {
  const { componentize } = await import(pathToFileURL(library).href);
  const { component } = await componentize({ sourcePath: entry, witPath, worldName, disableFeatures, env: { HOME: process.env.HOME } });
  await writeFile(output, component);
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
